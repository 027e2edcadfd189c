# The public names: each stands here once, and is loaded when it is first used.
from .data.collator import PairCollator as PairCollator
from .data.columns import Columns as Columns
from .data.columns import InputExample as InputExample
from .data.grouping import group_by_query as group_by_query
from .errors import ConfigurationError as ConfigurationError
from .errors import CrossTrainerError as CrossTrainerError
from .errors import DataError as DataError
from .errors import MissingDependencyError as MissingDependencyError
from .errors import UnsupportedModelError as UnsupportedModelError
from .execution.padding_free import enable_padding_free as enable_padding_free
from .metrics.evaluate_modules import from_evaluate as from_evaluate
from .metrics.pairs import binary_metrics as binary_metrics
from .metrics.pairs import correlation_metrics as correlation_metrics
from .metrics.pairs import multiclass_metrics as multiclass_metrics
from .metrics.pairs import multilabel_metrics as multilabel_metrics
from .metrics.rankings import compare as compare
from .metrics.rankings import ranking_metrics as ranking_metrics
from .scoring.cross_encoder import CrossEncoder as CrossEncoder
from .scoring.mining import MinedNegatives as MinedNegatives
from .scoring.mining import MiningStatistics as MiningStatistics
from .scoring.mining import mine_hard_negatives as mine_hard_negatives
from .training.losses import ADRMSELoss as ADRMSELoss
from .training.losses import BinaryCrossEntropyLoss as BinaryCrossEntropyLoss
from .training.losses import CrossEntropyLoss as CrossEntropyLoss
from .training.losses import InfoNCELoss as InfoNCELoss
from .training.losses import KLDivergenceLoss as KLDivergenceLoss
from .training.losses import LambdaLoss as LambdaLoss
from .training.losses import ListMLELoss as ListMLELoss
from .training.losses import ListNetLoss as ListNetLoss
from .training.losses import MarginMSELoss as MarginMSELoss
from .training.losses import MSELoss as MSELoss
from .training.losses import RankNetLoss as RankNetLoss
from .training.plan import Plan as Plan
from .training.plan import make_plan as make_plan
from .training.trainer import CrossEncoderTrainer as CrossEncoderTrainer

__version__: str
