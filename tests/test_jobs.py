"""Jobs on an executor give each scenario its own rows."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from poq import simulate
from poq.synthetic import synthetic_log


def test_executor_gives_the_serial_frame():
    """Many groups, so that several jobs wait while others run."""
    log = synthetic_log(np.random.default_rng(0), n_items=10, n_models=2, evaluators=6)
    scenarios = simulate.grid(task="synthetic", committee=[1, 2, 3, 4], burn_in=list(range(30)), n_rounds=40)
    serial = simulate.run(log, scenarios, trials=2, seed=5, progress=False)
    with ThreadPoolExecutor(1) as executor:
        parallel = simulate.run(log, scenarios, trials=2, seed=5, executor=executor, progress=False)
    pd.testing.assert_frame_equal(serial, parallel)
