# ruff: noqa: E501  (a table reads best with a line for each meaning)
"""The words and templates that `demo_data` and `demo_search` put their synthetic texts together from, all written for them.

`|` stands between several ways to say one thing, `,` or a new line between things, `/` between the forms of a verb. Where a table
has splits, `validation` and `test` hold what must not occur in training.
"""

from __future__ import annotations

# Two lines a domain: split; people; actions / kind of thing; things; places. Any of the people can do any action to any thing.
DOMAINS = """
train; chef|cook, waiter|server, baker|pastry maker, apprentice|trainee; slicing/sliced|cutting up/cut up, rinsing/rinsed|washing/washed, weighing/weighed, dumping/dumped|discarding/discarded
    vegetable; courgette|zucchini, aubergine|eggplant, onion, pepper|capsicum, carrot; in a kitchen|in a room with three ovens, at a market stall|at a stand on the market, behind a restaurant|at the back of a diner
train; gardener|landscaper, neighbour|person from next door, florist|flower seller, beekeeper; watering/watered, trimming/trimmed|pruning/pruned, digging up/dug up|uprooting/uprooted, covering/covered|wrapping/wrapped
    plant; rose bush, sapling|young tree, hedge|row of shrubs, fern, vine|climber; in a garden|in a yard, beside a greenhouse|next to a glasshouse, along a fence, on a rooftop|on top of a building
train; violinist|fiddler, drummer|percussionist, singer|vocalist, pianist|piano player; tuning/tuned|adjusting/adjusted, repairing/repaired|fixing/fixed, carrying/carried|lugging/lugged, wiping/wiped|dusting/dusted
    instrument; guitar, violin|fiddle, trumpet, accordion|squeezebox, drum; on a stage|on a platform, in a concert hall|in an auditorium, outside a studio, in a basement|in a cellar
train; manager|boss, accountant|bookkeeper, intern|junior clerk, lawyer|attorney; reading/read|studying/studied, signing/signed, copying/copied|duplicating/duplicated, shredding/shredded|destroying/destroyed
    document; contract|agreement, invoice|bill, report, letter, map|chart; in an office|at a workplace, at a desk, by a window|next to a window, in a corridor|in a hallway
train; farmer|rancher, shepherd, vet|veterinarian, farmhand|farm worker; feeding/fed, chasing/chased|pursuing/pursued, stroking/stroked|petting/petted, grooming/groomed|brushing/brushed
    animal; horse, rabbit|bunny, goat, hen|chicken, donkey|burro; in a barn, in a field|in a meadow, near a stable|close to a stable, under a tree
train; carpenter|woodworker, electrician, decorator|house painter, upholsterer; sanding/sanded|smoothing/smoothed, painting/painted, building/built|constructing/constructed, smashing/smashed|breaking/broken
    piece of furniture; chair|seat, table, cupboard|cabinet, bench, sofa|couch; in a workshop, in a garage|in a carport, on a porch|on a veranda, at an auction house
train; taxi driver|cab driver, tourist|sightseer, cyclist|bike rider, police officer|cop; parking/parked, pushing/pushed|shoving/shoved, stopping/stopped|halting/halted, inspecting/inspected|examining/examined
    vehicle; car|automobile, van, lorry|truck, motorbike|motorcycle, tractor; on a bridge, in front of a hotel|outside a hotel, at a crossroads|at an intersection, in a tunnel|in an underpass
train; tailor|dressmaker, customer|shopper, fashion model, bride|newly married woman; folding/folded, ironing/ironed|pressing/pressed, stitching/stitched|sewing/sewn, holding up/held up|lifting up/lifted up
    garment; jacket|coat, shirt, dress|gown, jumper|sweater, skirt; in a shop|in a store, in front of a mirror, in a laundry room, in an attic|in a loft
validation; teacher|instructor, pupil|student, librarian, janitor|caretaker; opening/opened, closing/closed|shutting/shut, hiding/hidden|concealing/concealed, returning/returned|giving back/given back
    book; novel, textbook|schoolbook, comic|graphic novel, dictionary, diary|journal; in a library, in a classroom|in a schoolroom, on a staircase|on a flight of stairs, on a train
validation; sailor|seafarer, fisher|angler, captain|skipper, lifeguard; towing/towed|pulling/pulled, mooring/moored|tying up/tied up, steering/steered|navigating/navigated, loading/loaded
    boat; canoe, ferry, yacht|sailing boat, rowing boat|dinghy, raft; in a harbour|in a port, on a lake, near a lighthouse|close to a lighthouse, under a waterfall
test; goalkeeper|goalie, coach|trainer, referee|umpire, spectator|onlooker; kicking/kicked, throwing/thrown|tossing/tossed, inflating/inflated|pumping up/pumped up, polishing/polished|shining/shined
    ball; football|soccer ball, basketball, tennis ball, volleyball, rugby ball; in a stadium|in an arena, on a beach|at the seaside, in a gym|in a sports centre, behind a church
test; nurse|carer, doctor|physician, scientist|researcher, ambulance crew member|paramedic; disinfecting/disinfected|sterilizing/sterilized, unpacking/unpacked|unwrapping/unwrapped, labelling/labelled|tagging/tagged, testing/tested
    medical device; thermometer, syringe|needle, microscope, stethoscope, hearing aid; in a hospital|in a clinic, in a laboratory|in a lab, beside a bed|at a bedside, in a tent
"""
MEETINGS = {  # what people do to people: who does it to whom matters
    "train": "helping/helped|assisting/assisted, calling/called|phoning/phoned, teaching/taught|training/trained, praising/praised|complimenting/complimented, interrupting/interrupted, paying/paid",
    "validation": "rescuing/rescued|saving/saved, filming/filmed|recording/recorded, warning/warned|alerting/alerted, drawing/drawn|sketching/sketched",
    "test": "scolding/scolded|telling off/told off, guiding/guided|escorting/escorted, greeting/greeted|welcoming/welcomed, tickling/tickled",
}
MOODS = {  # each followed by its opposite
    "train": "young|youthful, old|elderly, tall|lanky, short|small, cheerful|happy, gloomy|sad",
    "validation": "slim|thin, stout|plump, calm|relaxed, nervous|anxious",
    "test": "strong|muscular, weak|frail, rich|wealthy, poor|penniless",
}
COUNTS = {1: (), 2: ("two", "a couple of"), 3: ("three", "3"), 4: ("four", "4"), 6: ("six", "half a dozen")}
FORMS = {
    "train": ("active", "passive", "there"),
    "validation": ("active", "passive", "cleft"),
    "test": ("active", "passive", "cleft"),
}
FRAMES = {
    "train": ("", "", "", "in this picture, ", "it looks as if "),
    "validation": ("", "", "we can see that "),
    "test": ("", "", "the film shows how "),
}

# Each line is one thing to ask, in several wordings; what stands after "##" is kept for the held-out splits.
ABOUT_SKILLS = """
How do I learn to {x}? | What is the best way to get started with {xing}? | I would like to {x}. Where should I begin? | Which first steps do you recommend to someone who is new to {xing}? ## How does a complete novice take up {xing}?
How long does it take to learn to {x}? | How many months pass before a beginner can {x} well? | When will I see progress if I practise {xing} every day? ## What amount of time should I plan for getting good at {xing}?
Is {xing} an expensive hobby? | How much money will I need if I want to {x}? | What does it cost to take up {xing}? ## Is {xing} affordable for people who earn little?
Can I learn to {x} without a tutor? | Is it possible to get good at {xing} all by myself? | Do I have to take lessons in order to {x}? ## Is an instructor really necessary for {xing}?
At what age can children start to {x}? | How old should a kid be before {xing}? | Which age is too young for {xing}? ## When is my little daughter big enough to {x}?
Why do so many people give up {xing}? | What makes beginners who want to {x} quit so early? | For what reason do most learners stop {xing} after a while? ## Why is it hard to stick with {xing}?
Can {xing} hurt my back? | Is it bad for the body to {x} every day? | What injuries do people get from {xing}? ## Does {xing} damage one's health?
What are the benefits of {xing}? | Why should I {x}? | In what way is it good for me to {x}? ## What do people gain from {xing}?
Why should I not {x}? | What speaks against {xing}? | What are the drawbacks of {xing}? ## Is there any reason to avoid {xing}?
Can I earn a living from {xing}? | Is it possible to make a career out of {xing}? | Does {xing} pay enough to be a full-time job? ## Do people who {x} make enough money to pay the rent?
"""
ABOUT_THINGS = """
How do I repair {x}? | What is the right way to fix {x}? | How can I get {x} to work again? ## What should be done with {x} that is broken?
Where can I buy {x}? | Which shops sell {x}? | Where do people go to get {x} of their own? ## In which store would I find {x}?
How much does {x} cost? | What is a fair price for {x}? | How many dollars should I expect to pay for {x}? ## What would I have to spend on {x}?
Where can I sell {x}? | Who would pay me for {x} that I no longer need? | What is a good place to find a buyer for {x}? ## How do I turn {x} into cash?
How do I clean {x}? | What is the best way to get dirt off {x}? | Which method removes stains from {x}? ## How is {x} washed properly?
How should I store {x} over the winter? | Where do I keep {x} during the cold months? | What is the safest place for {x} when it is freezing outside? ## How can {x} be put away until spring?
Where can I rent {x}? | Who lends {x} for a few days? | Is there a place where {x} can be hired? ## How can I use {x} for a weekend without owning it?
How long does {x} last? | After how many years does {x} wear out? | What is the life expectancy of {x}? ## When does the time come to replace {x}?
Is {x} a good present? | Would {x} make a nice gift? | Do people like to be given {x} for their birthday? ## Should I surprise my friend with {x}?
"""
ABOUT_TRIPS = """
What is the cheapest way to get from {a} to {b}? | How can I travel to {b} from {a} without spending much? | I live in {a} and have little money. How do I reach {b}? ## Which connection to {b} costs the least when I leave from {a}?
How many hours does the train from {a} to {b} take? | How long do I sit on the train to {b} when I start in {a}? | If I get on the train in {a}, how late will I arrive in {b}? ## What is the travel time by rail for someone who goes from {a} to {b}?
Should I move from {a} to {b}? | I live in {a}. Is it a good idea to settle in {b}? | Is it wise to leave {a} for a new home in {b}? ## Would I regret giving up my flat in {a} for one in {b}?
Is {a} bigger than {b}? | Does {a} have more inhabitants than {b}? | Do fewer people live in {b} than in {a}? ## Is {b} smaller than {a}?
Is life in {a} cheaper than in {b}? | Do I pay less rent in {a} than in {b}? | Is {b} the more expensive place to live, compared to {a}? ## Would I spend more on living in {b} than in {a}?
"""

SKILLS = {
    "train": "play the violin/playing the violin|play the fiddle/playing the fiddle, bake bread/baking bread|make bread/making bread, speak Dutch/speaking Dutch, ride a horse/riding a horse, paint portraits/painting portraits, swim/swimming, write songs/writing songs|compose songs/composing songs, drive a lorry/driving a lorry|drive a truck/driving a truck, juggle/juggling, grow mushrooms/growing mushrooms, sew clothes/sewing clothes, take photographs/taking photographs|take pictures/taking pictures, sing in a choir/singing in a choir, brew beer/brewing beer",
    "validation": "knit/knitting, climb mountains/climbing mountains, fly a plane/flying a plane|pilot an aircraft/piloting an aircraft, keep bees/keeping bees, dance the tango/dancing the tango, cut hair/cutting hair",
    "test": "play chess/playing chess, skate/skating, carve wood/carving wood, dive/diving, write novels/writing novels|write fiction/writing fiction, train dogs/training dogs",
}
THINGS = {
    "train": "a laptop|a notebook computer, a bicycle|a bike, a tent, a sofa|a couch, a piano, a lawnmower, a fridge|a refrigerator, a wedding dress|a bridal gown, a motorbike|a motorcycle, a drum kit, a camera, a carpet|a rug, a barbecue|a grill, a sewing machine, a rucksack|a backpack",
    "validation": "a television|a TV set, a caravan|a camper, a bathtub, an umbrella, a pair of skis, a hot-air balloon",
    "test": "a telescope, a mattress, a pram|a baby carriage, a surfboard, a coffee machine|an espresso maker, a wheelchair",
}
CITIES = {
    "train": "Paris, Berlin, Madrid, Rome, Vienna, Lisbon, Warsaw, Prague, Brussels, Milan, Hamburg, Geneva, Lyon, Naples",
    "validation": "Oslo, Stockholm, Helsinki, Copenhagen, Riga, Bergen",
    "test": "Cairo, Tunis, Athens, Istanbul, Izmir, Beirut",
}
CONTEXTS = {
    "train": "I am twenty years old.|I turned twenty this year., I am sixty years old.|I turned sixty this year., I have two weeks.|There are fourteen days left., I have six weeks.|I have a month and a half., I am in a hurry.|It has to happen fast., I am not in a hurry.|There is no need to rush., I have three cats.|Three cats live with me., I work at night.|I am on the night shift., My landlord is very strict.|The owner of my flat forbids nearly everything., My knee hurts.|I have a bad knee.",
    "validation": "I have a toddler.|My son is two years old., I am a university student.|I am still at college., My eyesight is poor.|I cannot see well., I have no internet at home.|My house is not online.",
    "test": "I lost my job.|I am unemployed., I am left-handed.|My right hand is the weaker one., I will be a pensioner soon.|My retirement is near., I share a flat with three people.|There are four of us in my flat.",
}

NAMES = {  # beginnings and ends of the names of towns, and what they have
    "train": (
        "Har Ellen Mar Tor Wes Bram Col Lang",
        "wick dale ford ton mouth bury",
        "Museum, Swimming Pool, Castle, Library, Concert Hall",
    ),
    "validation": ("Sil Oak Pem", "ver stead brook combe", "Zoo, Theatre, Ice Rink"),
    "test": ("Ash Nor Rud", "well holm by gate", "Botanical Garden, Aquarium, Planetarium"),
}
FACTS = {
    "time": "seven o'clock, half past eight, nine, ten, noon",
    "price": "four, seven, twelve, fifteen, twenty",
    "year": "1848, 1873, 1912, 1936, 1957, 1984",
    "person": "Anna Kowal, Peter Lindt, Maria Sousa, John Okafor, Ruth Meyer, Omar Haddad",
    "number": "three, five, eight, eleven, fourteen",
}
# Questions ## texts that answer them ## a text that touches the matter and leaves the answer open.
TOPICS = """
When does {e} open? | What are the opening hours of {e}? | At what time can I get into {e} in the morning? ## At {e}, visitors are let in from {time} on weekdays. | The doors of {e} are unlocked at {time}, except on Mondays. | If you come before {time}, you will find {e} closed. ## Opening hours of {e} change with the season and hang at the gate.
How much is a ticket for {e}? | What does it cost to visit {e}? | What is the entrance fee at {e}? ## Adults pay {price} dollars at {e}, children half of it. | Admission to {e} is {price} dollars. | You get into {e} for {price} dollars, and under-sixes go free. ## A ticket for {e} costs more on holidays than on other days.
When was {e} founded? | How old is {e}? | In which year did {e} come into being? ## {e} goes back to {year}, when a local family gave the money. | It was in {year} that the town established {e}. | {e} has existed since {year}. ## Historians disagree about the age of {e}.
When was {e} last renovated? | In which year was {e} modernised? | How long ago did {e} get its new roof? ## {e} was rebuilt from the ground up in {year}. | Builders refurbished {e} in {year}. | The last big works at {e} ended in {year}. ## Another renovation of {e} is being talked about.
Where can I leave my car at {e}? | Is there any parking near {e}? | Where do drivers park when they visit {e}? ## A garage with {number} floors stands behind {e}. | {e} has a free lot for vehicles, {number} minutes away on foot. | Motorists use the square opposite {e}, for {price} dollars a day. ## Finding a space for the car around {e} is hard at weekends.
Can I bring my dog to {e}? | Are pets allowed at {e}? | Is my puppy welcome in {e}? ## Animals have to stay outside {e}. | Four-legged friends must wait {number} steps from the door of {e}. | {e} admits no animals, guide dogs excepted. ## The rules on pets at {e} are under review.
Is there anything to eat at {e}? | Can I have lunch at {e}? | Where do hungry visitors go in {e}? ## A cafe on floor {number} of {e} serves soup and sandwiches from {time}. | {e} runs a small restaurant with {number} tables. | Snacks are sold in the lobby of {e}. ## Guests of {e} have asked for better food.
Who is in charge of {e}? | Who runs {e}? | What is the name of the director of {e}? ## {person} has led {e} for {number} years. | {e} is headed by {person}. | Since last spring {person} manages {e}. ## {e} is looking for a new director.
How do I get to {e} by bus? | Which bus stops at {e}? | Can I reach {e} by public transport? ## Line {number} from the station halts right at {e}. | Take the number {number} and get off at {e}. | {e} lies {number} minutes from the nearest tram. ## Bus passengers on their way to {e} should expect delays.
## held out
Can I get into {e} in a wheelchair? | Is {e} accessible for disabled visitors? | Are there steps at the entrance of {e}? ## A ramp and a lift with {number} stops make {e} barrier-free. | {e} is step-free throughout. | Whoever cannot climb stairs rings at the side door of {e}. ## Access to {e} for disabled people is to be improved.
May I take photos in {e}? | Is it permitted to use a camera at {e}? | Are visitors of {e} free to film? ## {e} lets you shoot pictures without a flash. | Photography costs {price} dollars extra at {e}. | Whoever wants to film inside {e} pays {price} dollars at the desk. ## A well-known photographer worked at {e} for {number} years.
Where do I ask for things I lost at {e}? | I forgot my jacket in {e}. Who has it? | Does {e} have a lost property office? ## Found items are kept at the desk of {e} for {number} weeks. | {person} looks after everything that guests of {e} leave behind. | Umbrellas and bags left at {e} go to the town hall. ## Visitors of {e} should keep an eye on their things.
Can I hold a party at {e}? | Is it possible to rent {e} for an evening? | How do I book {e} for a wedding? ## {e} can be hired for {price} hundred dollars a night. | Private celebrations take place at {e} on Fridays; {person} takes bookings. | {e} is let to groups after {time}. ## A party at {e} made the news in {year}.
"""
