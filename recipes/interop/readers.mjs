// transformers.js reads the folders: node readers.mjs FOLDER, in the folder where it is installed. Logits of onnx/model.onnx.
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { AutoModelForSequenceClassification, AutoTokenizer, env } from '@huggingface/transformers';

const root = process.argv[2];
env.allowRemoteModels = false;
env.localModelPath = root;
const pairs = JSON.parse(readFileSync(`${root}/pairs.json`, 'utf8'));
const [queries, documents] = [0, 1].map((place) => pairs.map((pair) => pair[place]));

async function read(folder) {
  const tokenizer = await AutoTokenizer.from_pretrained(folder);
  const model = await AutoModelForSequenceClassification.from_pretrained(folder, { dtype: 'fp32' });
  const inputs = tokenizer(queries, { text_pair: documents, padding: true, truncation: true });
  const { logits } = await model(inputs);
  const rows = logits.tolist();
  return rows[0].length === 1 ? rows.map(([value]) => value) : rows;
}

const kinds = {};
for (const name of readdirSync(root).filter((name) => existsSync(`${root}/${name}/modules.json`))) {
  try {
    kinds[name] = { scores: await read(name) };
  } catch (error) {
    kinds[name] = { error: String(error).replaceAll(`${root}/${name}`, 'FOLDER').replace(/\s+/g, ' ').slice(0, 120) };
  }
}
mkdirSync(`${root}/results`, { recursive: true });
writeFileSync(`${root}/results/transformers_js.json`, JSON.stringify({ version: env.version, kinds }));
