"""The same mechanism written in other ways, each as well as its tool allows.

Every rival plays the rounds of one :class:`World`: draw an output, sample K of N nodes, boost the malicious reports,
reach the trust-weighted consensus, update the weights (Eq. 21), pay both roles, add up. It returns the means and
spreads of :data:`RESULTS`, so that a test can hold it against the engine. The engine does more than its rivals: it
also plays the honest run beside the attacked one, and reports rank correlation, pay per node and model, and the pay
of a round.
"""

from __future__ import annotations

import random
from math import nan, sqrt
from typing import NamedTuple

import numpy as np

RESULTS = ("pearson", "rmse", "mae", "bias", "evaluator_reward_honest", "evaluator_reward_malicious")
RESULTS += ("evaluator_reward_sd", "inference_reward", "inference_reward_sd")
ALPHA, BETA = 0.7, 0.3
RATE, LOW, HIGH, BOOST = 0.1, 0.1, 5.0, 3.0


class World(NamedTuple):
    """values (O, E); truth, model (O,); evaluator, malicious, node_cost (N,); model_cost (M,); K; s.d. of noise."""

    values: np.ndarray
    truth: np.ndarray
    model: np.ndarray
    evaluator: np.ndarray
    malicious: np.ndarray
    node_cost: np.ndarray
    model_cost: np.ndarray
    committee: int
    jitter: float


class Sums:
    """Running sums of one run and, at its end, their means."""

    def __init__(self):
        self.consensus = [0.0] * 6  # c, q, c^2, q^2, c q, |c - q|
        self.evaluator = [0.0] * 5  # honest pay, malicious pay, pay^2, honest seats, malicious seats
        self.inference = [0.0] * 2  # pay, pay^2

    def results(self, n: int) -> dict[str, float]:
        c, q, cc, qq, cq, absolute = (total / n for total in self.consensus)
        honest, malicious, squares, honest_seats, malicious_seats = self.evaluator
        seats = honest_seats + malicious_seats
        pay, pay_squares = (total / n for total in self.inference)
        return {
            "pearson": (cq - c * q) / sqrt((cc - c * c) * (qq - q * q)),
            "rmse": sqrt(cc - 2 * cq + qq),
            "mae": absolute,
            "bias": c - q,
            "evaluator_reward_honest": honest / honest_seats,
            "evaluator_reward_malicious": malicious / malicious_seats if malicious_seats else nan,
            "evaluator_reward_sd": sqrt(squares / seats - ((honest + malicious) / seats) ** 2),
            "inference_reward": pay,
            "inference_reward_sd": sqrt(pay_squares - pay * pay),
        }


# ---------------------------------------------------------------------------------------------------- plain Python


def play_python(world: World, n_rounds: int, seed: int = 0) -> dict[str, float]:
    """A plain loop: lists and local names, nothing imported but `random`."""
    rng = random.Random(seed)
    pick, sample, gauss = rng.random, rng.sample, rng.gauss
    values, truth = world.values.tolist(), world.truth.tolist()
    evaluator, malicious = world.evaluator.tolist(), world.malicious.tolist()
    idle_cost = [BETA * cost for cost in world.model_cost[world.model].tolist()]  # by output
    seat_cost = [BETA * cost for cost in world.node_cost.tolist()]
    committee, jitter = world.committee, world.jitter
    nodes, n_outputs = range(len(evaluator)), len(values)
    trust = [1.0] * len(evaluator)
    c1 = q1 = c2 = q2 = cq = absolute = 0.0
    honest_pay = bad_pay = squares = inference = inference_squares = 0.0
    bad_seats = 0
    for _ in range(n_rounds):
        output = int(pick() * n_outputs)
        row = values[output]
        members = sample(nodes, committee)
        scores = []
        total = weighted = 0.0
        for n in members:
            s = row[evaluator[n]]
            if jitter:
                s += jitter * gauss(0.0, 1.0)
                s = 0.0 if s < 0.0 else 10.0 if s > 10.0 else s
            if malicious[n]:
                s += BOOST
                if s > 10.0:
                    s = 10.0
            scores.append(s)
            w = trust[n]
            total += w
            weighted += w * s
        c = weighted / total
        for n, s in zip(members, scores):
            d = abs(s - c) / 10.0
            w = trust[n] * (1.0 + RATE * (0.5 - d))
            trust[n] = LOW if w < LOW else HIGH if w > HIGH else w
            pay = ALPHA * (1.0 - d) - seat_cost[n]
            squares += pay * pay
            if malicious[n]:
                bad_pay += pay
                bad_seats += 1
            else:
                honest_pay += pay
        pay = ALPHA * c / 10.0 - idle_cost[output]
        inference += pay
        inference_squares += pay * pay
        q = truth[output]
        c1 += c
        q1 += q
        c2 += c * c
        q2 += q * q
        cq += c * q
        absolute += abs(c - q)
    sums = Sums()
    sums.consensus = [c1, q1, c2, q2, cq, absolute]
    sums.evaluator = [honest_pay, bad_pay, squares, n_rounds * committee - bad_seats, bad_seats]
    sums.inference = [inference, inference_squares]
    return sums.results(n_rounds)


# ------------------------------------------------------------------------------------------------------------ numpy


def draw_floyd(rng, n_nodes: int, committee: int, shape) -> np.ndarray:
    """K different nodes of N per round, (K, ...), by Floyd's algorithm: no sort, no permutation, small integers."""
    kind = np.uint8 if n_nodes <= 256 else np.uint16
    node = np.empty((committee, *shape), dtype=kind)
    for k in range(committee):
        last = n_nodes - committee + k
        drawn = rng.integers(0, last + 1, size=shape, dtype=kind)
        taken = np.zeros(shape, dtype=bool)
        for earlier in node[:k]:
            taken |= earlier == drawn
        drawn[taken] = last
        node[k] = drawn
    return node


def draw_argpartition(rng, n_nodes: int, committee: int, shape) -> np.ndarray:
    """K different nodes of N per round, (K, ...): the places of the K smallest of N random keys."""
    keys = rng.random((*shape, n_nodes), dtype=np.float32)
    node = np.argpartition(keys, committee - 1, axis=-1)[..., :committee]
    return np.ascontiguousarray(np.moveaxis(node, -1, 0))


def play_numpy(world: World, n_rounds: int, seed: int = 0, *, replicates: int = 1024, draw=draw_floyd) -> dict:
    """Batched over replicates, which all play at once; what does not hang on trust is done for many rounds at once.

    `n_rounds` counts over all replicates. All replicates share their malicious nodes.
    """
    rng = np.random.Generator(np.random.SFC64(seed))
    committee, n_nodes = world.committee, len(world.evaluator)
    n_outputs, n_evaluators = world.values.shape
    flat = world.values.ravel()
    bonus = BOOST * world.malicious
    marked = world.malicious.astype(np.float64)
    seat_cost, idle_cost = BETA * world.node_cost, BETA * world.model_cost[world.model]
    trust = np.ones(n_nodes * replicates)
    lane = np.arange(replicates)
    sums = np.zeros((13, replicates))
    n_steps = n_rounds // replicates
    most = max(1, 60_000 // (committee * replicates))  # rounds at once, so that the arrays stay in the cache
    for begin in range(0, n_steps, most):
        shape = min(most, n_steps - begin), replicates
        output = rng.integers(n_outputs, size=shape, dtype=np.int32)
        node = draw(rng, n_nodes, committee, shape)
        scores = flat.take(output * n_evaluators + world.evaluator.take(node))
        if world.jitter:
            noise = rng.standard_normal(scores.shape)
            noise *= world.jitter
            scores += noise
            np.clip(scores, 0.0, 10.0, out=scores)
        scores += bonus.take(node)
        np.minimum(scores, 10.0, out=scores)
        place = node * np.intp(replicates) + lane
        consensus = np.empty(shape)
        distance = np.empty_like(scores)
        for step in range(shape[0]):
            here = place[:, step]
            weights = trust.take(here)
            reported = scores[:, step]
            np.divide((weights * reported).sum(axis=0), weights.sum(axis=0), out=consensus[step])
            d = reported - consensus[step]
            np.abs(d, out=d)
            d *= 0.1
            distance[:, step] = d
            d *= -RATE
            d += 1.0 + 0.5 * RATE
            weights *= d
            np.maximum(weights, LOW, out=weights)
            np.minimum(weights, HIGH, out=weights)
            trust[here] = weights
        pay = distance  # in place: alpha (1 - d) - beta cost
        pay *= -ALPHA
        pay += ALPHA
        pay -= seat_cost.take(node)
        bad = marked.take(node)
        truth = world.truth.take(output)
        idle = ALPHA / 10.0 * consensus - idle_cost.take(output)
        columns = (
            consensus,
            truth,
            consensus**2,
            truth**2,
            consensus * truth,
            np.abs(consensus - truth),
            idle,
            idle**2,
        )
        for row, column in zip(sums, columns):
            row += column.sum(axis=0)
        sums[8] += pay.sum(axis=(0, 1))
        sums[9] += np.einsum("ksb,ksb->b", pay, bad)
        sums[10] += np.einsum("ksb,ksb->b", pay, pay)
        sums[11] += bad.sum(axis=(0, 1))
    total = sums.sum(axis=1).tolist()
    played = n_steps * replicates
    made = Sums()
    made.consensus, made.inference = total[:6], total[6:8]
    made.evaluator = [total[8] - total[9], total[9], total[10], played * committee - total[11], total[11]]
    return made.results(played)


# ------------------------------------------------------------------------------------------------------------- Mesa


def play_mesa(world: World, n_rounds: int, seed: int = 0) -> dict[str, float]:
    """Agents in Mesa: the model draws and aggregates, each evaluator reports and updates itself."""
    import mesa

    values, truth = world.values.tolist(), world.truth.tolist()
    idle_cost = [BETA * cost for cost in world.model_cost[world.model].tolist()]

    class Evaluator(mesa.Agent):
        def __init__(self, model, column, malicious, cost):
            super().__init__(model)
            self.column, self.malicious, self.cost = column, malicious, BETA * cost
            self.trust, self.score = 1.0, 0.0

        def report(self, row):
            score = row[self.column]
            if self.model.jitter:
                score = min(max(score + self.model.jitter * self.random.gauss(0.0, 1.0), 0.0), 10.0)
            self.score = min(score + BOOST, 10.0) if self.malicious else score

        def settle(self, consensus):
            d = abs(self.score - consensus) / 10.0
            self.trust = min(max(self.trust * (1.0 + RATE * (0.5 - d)), LOW), HIGH)
            return ALPHA * (1.0 - d) - self.cost

    class Network(mesa.Model):
        def __init__(self):
            super().__init__(seed=seed)
            self.jitter = world.jitter
            rows = zip(world.evaluator.tolist(), world.malicious.tolist(), world.node_cost.tolist())
            self.nodes = [Evaluator(self, *row) for row in rows]
            self.sums = Sums()

        def step(self):
            output = self.random.randrange(len(values))
            members = self.random.sample(self.nodes, world.committee)
            for member in members:
                member.report(values[output])
            total = sum(member.trust for member in members)
            c = sum(member.trust * member.score for member in members) / total
            evaluator = self.sums.evaluator
            for member in members:
                pay = member.settle(c)
                evaluator[member.malicious] += pay
                evaluator[2] += pay * pay
                evaluator[3 + member.malicious] += 1
            _add(self.sums, c, truth[output], ALPHA * c / 10.0 - idle_cost[output])

    network = Network()
    for _ in range(n_rounds):
        network.step()
    return network.sums.results(n_rounds)


def _add(sums: Sums, c: float, q: float, pay: float) -> None:
    for i, value in enumerate((c, q, c * c, q * q, c * q, abs(c - q))):
        sums.consensus[i] += value
    sums.inference[0] += pay
    sums.inference[1] += pay * pay


# ----------------------------------------------------------------------------------------------------------- radCAD


def play_radcad(world: World, n_rounds: int, seed: int = 0) -> dict[str, float]:
    """A radCAD model in one process, without deep copies: a policy plays the round, two variables take its signals."""
    import radcad
    from radcad.backends import Backend

    rng = random.Random(seed)
    values, truth = world.values.tolist(), world.truth.tolist()
    evaluator, malicious = world.evaluator.tolist(), world.malicious.tolist()
    idle_cost = [BETA * cost for cost in world.model_cost[world.model].tolist()]
    seat_cost = [BETA * cost for cost in world.node_cost.tolist()]
    nodes = range(len(evaluator))
    sums = Sums()

    def play_round(params, substep, history, state):
        output = rng.randrange(len(values))
        row, trust = values[output], state["trust"]
        members, scores = rng.sample(nodes, world.committee), []
        for n in members:
            s = row[evaluator[n]]
            if world.jitter:
                s = min(max(s + world.jitter * rng.gauss(0.0, 1.0), 0.0), 10.0)
            scores.append(min(s + BOOST, 10.0) if malicious[n] else s)
        total = sum(trust[n] for n in members)
        c = sum(trust[n] * s for n, s in zip(members, scores)) / total
        return {"output": output, "members": members, "scores": scores, "c": c}

    def update_trust(params, substep, history, state, signal):
        trust = state["trust"]
        for n, s in zip(signal["members"], signal["scores"]):
            d = abs(s - signal["c"]) / 10.0
            trust[n] = min(max(trust[n] * (1.0 + RATE * (0.5 - d)), LOW), HIGH)
            pay = ALPHA * (1.0 - d) - seat_cost[n]
            sums.evaluator[malicious[n]] += pay
            sums.evaluator[2] += pay * pay
            sums.evaluator[3 + malicious[n]] += 1
        return "trust", trust

    def reach_consensus(params, substep, history, state, signal):
        c, output = signal["c"], signal["output"]
        _add(sums, c, truth[output], ALPHA * c / 10.0 - idle_cost[output])
        return "consensus", c

    blocks = [
        {"policies": {"round": play_round}, "variables": {"trust": update_trust, "consensus": reach_consensus}},
    ]
    model = radcad.Model(initial_state={"trust": [1.0] * len(evaluator), "consensus": 5.0}, state_update_blocks=blocks)
    experiment = radcad.Experiment([radcad.Simulation(model=model, timesteps=n_rounds, runs=1)])
    experiment.engine = radcad.Engine(backend=Backend.SINGLE_PROCESS, deepcopy=False, drop_substeps=True)
    experiment.run()
    return sums.results(n_rounds)
