from flawscope.runtime.scale.score_api import score as score
from flawscope.runtime.scale.score_report import ShardedReport as ShardedReport

__all__ = ["ShardedReport", "score"]
