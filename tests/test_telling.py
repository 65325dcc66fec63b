import logging
from flux import *
def test_x(caplog):
    caplog.set_level(logging.INFO)
    m = flux()
    for kw in (dict(), dict(w=0.0), dict(w=0.2), dict(start_percent=.45,end_percent=.46), dict(schedule=schedule(2, end_layer=1) if 0 else schedule(2,final_layer=1.0))):
        sample(apply(m, direction(), **kw))
    sample(node("ScaleTextVariance", model=m)[0])
    for r in caplog.records: print(r.levelname, r.getMessage())
    assert 0
