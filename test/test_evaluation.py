"""What scores are made of: calibration, bands, disagreement, outside, bound; and the report."""

from fakes import cart, linear_model, metadata_of
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm
import torch

from mbrl_ros.core.robot import RobotSpec
from mbrl_ros.learning import card, export, open_loop, report
from mbrl_ros.learning.bound import bound_terms, model_error, policy_shift
from mbrl_ros.learning.doubt import auroc, rank_correlation
from mbrl_ros.learning.ensemble import Ensemble
from mbrl_ros.learning.evaluation import evaluate
from mbrl_ros.learning.gates import Gate, gates
from mbrl_ros.learning.one_step import calibration_error, LEVELS, OneStep, split_in_halves
from mbrl_ros.learning.open_loop import k_step_errors
from mbrl_ros.learning.recalibration import Recalibration
from mbrl_ros.learning.region import action_shares, Region
from mbrl_ros.runtime.dynamics import Dynamics


def walk(steps, seed, noise=1.0):
    """Both fields of the cart walk at random; the force does nothing."""
    rng = np.random.default_rng(seed)
    states = np.concatenate([np.zeros((1, 2)),
                             np.cumsum(noise * rng.standard_normal((steps, 2)), axis=0)])
    return states, rng.uniform(-2.0, 2.0, (steps, 1))


def stays(std, offsets=(0.0, 0.0)):
    """Member e says that the state stays, plus an offset."""
    members = len(offsets)
    model = linear_model([np.eye(2)] * members, [np.zeros((2, 1))] * members,
                         [[offset] * 2 for offset in offsets], [std] * members)
    return Dynamics(model, {'members': members, 'step_std': [1.0, 1.0]})


def test_calibration_of_a_model_that_is_half_as_sure_as_it_should_be():
    one = OneStep.predict(stays([2.0, 1.0]), [walk(20000, 0)])
    # Noise of std 1 lies inside +- 2 z: 2 Phi(2 z) - 1 where 2 Phi(z) - 1 is the level.
    z = norm.ppf(0.5 + LEVELS / 2)
    expected = np.stack([2 * norm.cdf(2 * z) - 1, LEVELS], axis=1)
    np.testing.assert_allclose(one.coverage(), expected, atol=0.012)
    np.testing.assert_allclose(calibration_error(one.coverage()),
                               [np.abs(expected[:, 0] - LEVELS).mean(), 0.0], atol=0.01)


def test_central_interval_of_a_mixture():
    # Members at +1 and -1 with std 0.5; what happened is 0.5.
    one = OneStep.predict(stays([0.5, 0.5], (1.0, -1.0)),
                          [(np.array([[0.0, 0.0], [0.5, 0.5]]), np.zeros((1, 1)))])
    below = 0.5 * (norm.cdf(-1.0) + norm.cdf(3.0))
    np.testing.assert_allclose(one.centrality(), abs(2 * below - 1), atol=1e-6)


def test_many_transitions_are_predicted_in_pieces():
    counts, dynamics = [], stays([1.0, 2.0], (0.0, 3.0))

    class Counting(Dynamics):
        def __init__(self):
            self.step_std = dynamics.step_std

        def __call__(self, observation, action):
            counts.append((len(observation), len(action)))
            return dynamics(observation, action)
    one = OneStep.predict(Counting(), [walk(15_000, 0), walk(9_000, 1)])
    assert counts == [(10_000, 10_000), (10_000, 10_000), (4_000, 4_000)]
    # In their order: every member says that the state stays, plus its offset.
    np.testing.assert_allclose(one.mean, [one.state, one.state + 3.0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(one.std, np.broadcast_to([1.0, 2.0], one.std.shape))


def test_recalibration_finds_the_factor_and_scores_the_other_half():
    episodes = [walk(500, seed) for seed in range(8)]
    raw = OneStep.predict(stays([2.0, 0.4]), episodes)
    found = Recalibration.fit(raw, episodes, seed=0)
    # 4000 transitions; the grid is 15 % wide.
    np.testing.assert_allclose(found.shape.factor, [0.5, 2.5], rtol=0.08)
    np.testing.assert_array_equal(found.shape.power, 1.0)
    half = split_in_halves(episodes, 0)
    assert half.sum() == 2000
    # Blocks of 25 of one episode stay together.
    assert (half.reshape(-1, 25).all(axis=1) == half.reshape(-1, 25).any(axis=1)).all()
    assert len(np.unique(np.hstack(found.honest)[half], axis=0)) == 1
    only = Recalibration.fit(raw.rows(~half), [(np.zeros((2001, 2)), np.zeros((2000, 1)))], 0)
    for values, expected in zip(found.honest, only.shape, strict=True):
        np.testing.assert_array_equal(values[half][0], expected)
    dynamics = stays(found.shape.factor * [2.0, 0.4])
    graph = OneStep.predict(dynamics, episodes)
    np.testing.assert_allclose(found.undo(graph).std, raw.std, rtol=1e-6)
    scores = evaluate(dynamics, cart(), episodes, np.ones(2), 1, seed=0, recalibration=found)
    assert scores.overall['calibration_error'] < 0.02
    assert scores.recalibration['without']['calibration_error'] > 0.15
    assert scores.recalibration['factor'] == dict(zip(('position', 'velocity'), found.shape.factor,
                                                      strict=True))


def test_a_few_impacts_do_not_widen_every_interval_nor_are_they_forgotten():
    states, actions = walk(4000, 0)
    jumps = np.zeros_like(states)
    jumps[200::200] = 20.0  # half a percent: 20 std, each
    episodes = [(states + np.cumsum(jumps, axis=0), actions)]
    found = Recalibration.fit(OneStep.predict(stays([1.0, 1.0]), episodes), episodes, 0)
    # The likelihood would ask for sqrt(1 + 400 / 200) = 1.7; the grid is 15 % wide.
    np.testing.assert_allclose(found.shape.factor, 1.0, rtol=0.1)


def test_a_power_parts_small_stds_from_large_ones():
    # The std is 0.01 or 1 and predicted as its square root, 0.1 or 1: no factor suits both.
    rng, count = np.random.default_rng(0), 4000
    truth = np.where(rng.random((count, 1)) < 0.5, 0.01, 1.0) * np.ones(2)
    zeros = np.zeros((count, 2))
    raw = OneStep(zeros, zeros[:, :1], truth * rng.standard_normal((count, 2)), zeros[None],
                  np.sqrt(truth)[None], np.ones(2))
    episodes = [(np.zeros((count + 1, 2)), zeros[:, :1])]
    found = Recalibration.fit(raw, episodes, 0)
    np.testing.assert_array_equal(found.shape.power, 2.0)
    np.testing.assert_allclose(found.shape.factor, 1.0, rtol=0.08)
    graph = raw.reshaped(*found.shape)
    np.testing.assert_allclose(found.undo(graph).std, raw.std, rtol=1e-9)
    # 4000 transitions know a share to 0.8 %.
    assert calibration_error(found.score_honestly(graph).coverage()).max() < 0.02


def test_too_few_held_out_transitions_change_nothing():
    episodes = [walk(49, 0)]
    found = Recalibration.fit(OneStep.predict(stays([5.0, 5.0]), episodes), episodes, 0)
    np.testing.assert_array_equal([found.shape, found.shape], 1.0)


def test_factors_and_powers_are_in_the_graph():
    generator = torch.Generator().manual_seed(0)
    ensemble = Ensemble(cart(), 2, (8,), (-4.0, 0.5), generator)
    state, action = torch.randn(50, 2, generator=generator), torch.randn(50, 1)
    ensemble.fit_normaliser(state, action, state + 0.1)
    before = ensemble(state.expand(2, -1, -1), action.expand(2, -1, -1))
    ensemble.std_factor, ensemble.std_power = torch.tensor([[0.5, 3.0], [1.0, 2.0]])
    mean, std = ensemble(state.expand(2, -1, -1), action.expand(2, -1, -1))
    torch.testing.assert_close(mean, before[0])
    # In typical steps: 3 (std / step)^2.
    torch.testing.assert_close(std[..., 0], 0.5 * before[1][..., 0])
    torch.testing.assert_close(std[..., 1], 3.0 * before[1][..., 1]**2 / ensemble.target_std[1])
    model = export.to_onnx(ensemble, 2, 1)
    assert export.check(model, ensemble, state.numpy(), action.numpy()) <= 1e-5
    # A warm start goes on from the weights alone.
    assert not {'std_factor', 'std_power'} & ensemble.arrays().keys()


def test_band_of_the_open_loop_error():
    episodes = [walk(100, seed) for seed in range(20)]
    rows = k_step_errors(stays([1.0, 1.0]), episodes, np.ones(2), 10, 0)
    # A random walk is sqrt(k) off.
    for row in rows:
        assert row['low'] < row['error'] < row['high']
        assert row['error'] == pytest.approx(np.sqrt(row['k']), rel=0.1)
        assert row['starts'] == 20 * (101 - row['k'])
    # 4000 independent errors of one step: band +-1.96 / sqrt(2 x 4000) = 2.2 % to either side.
    assert rows[0]['high'] - rows[0]['low'] == pytest.approx(0.044, rel=0.25)
    # At k = 10 neighbours share nine steps: the band is wider than as many single errors had.
    assert rows[9]['high'] - rows[9]['low'] > 1.5 * 0.044 * np.sqrt(10)


def test_pieces_do_not_change_the_error(monkeypatch):
    episodes = [walk(30, 0), walk(7, 1)]
    whole = k_step_errors(stays([0.0, 0.0]), episodes, np.ones(2), 25, 0)
    monkeypatch.setattr(open_loop, 'STARTS_AT_ONCE', 4)
    for one, other in zip(whole, k_step_errors(stays([0.0, 0.0]), episodes, np.ones(2), 25, 0),
                          strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    # Starts with 25 steps left: 30 - 24 in the one, none in the other.
    assert (whole[0]['starts'], whole[24]['starts']) == (37, 6)
    monkeypatch.setattr(open_loop, 'MOST_STARTS', 20)
    assert k_step_errors(stays([0.0, 0.0]), episodes, np.ones(2), 25, 0)[0]['starts'] == 20


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20),
       st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_auroc_is_that_of_scipy(inside, outside):
    expected = mannwhitneyu(outside, inside).statistic / (len(inside) * len(outside))
    assert auroc(np.array(inside), np.array(outside)) == pytest.approx(expected)


def test_rank_correlation():
    assert rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3])) == \
        pytest.approx(1.0)
    assert rank_correlation(np.ones(3), np.arange(3.0)) is None


def turning():
    """The cart with an angle in place of the position."""
    spec = cart().model_dump()
    position, velocity = spec['observation']
    spec['observation'] = [position | {'feature': 'angle', 'unit': 'rad'}, velocity]
    return RobotSpec.model_validate(spec)


@given(st.integers(0, 1000), st.booleans())
def test_pushed_states_are_half_the_range_outside(seed, is_angle):
    robot = turning() if is_angle else cart()
    state, action = walk(50, seed)
    region = Region.of(robot, state[:-1], action)
    pushed = region.push_out(robot, state[:-1], seed)
    width = region.high - region.low
    beyond = np.maximum(region.low - pushed, pushed - region.high) / width
    # The first field to get there stops; none goes further.
    np.testing.assert_allclose(beyond[:, 1:] if is_angle else beyond.max(axis=1, keepdims=True),
                               0.5, atol=1e-6)
    if is_angle:
        np.testing.assert_array_equal(pushed[:, 0], state[:-1, 0])


def test_a_region_is_read_back_as_written():
    state, action = walk(50, 0)
    region = Region.of(cart(), state[:-1], action)
    again = Region.from_dict(region.to_dict())
    for name, array in vars(region).items():
        np.testing.assert_allclose(vars(again)[name], array, atol=1e-6)
    np.testing.assert_allclose(region.states.sum(axis=1), 1.0)


def test_terms_of_the_bound_by_hand():
    # One field is off by its deviation, the other exact: 2 Phi(1 / 2) - 1.
    error = np.array([[0.2, 0.0]])
    assert model_error(error, np.array([0.2, 1.0])) == pytest.approx(2 * norm.cdf(0.5) - 1)
    # Forces -2 and +2 in equal parts against -2 alone: half of the mass moves.
    robot = cart()
    shares = [action_shares(robot, np.array(a)[:, None]) for a in ([-2.0, 2.0], [-2.0, -1.9])]
    assert policy_shift(*shares) == pytest.approx(0.5)
    bound = bound_terms(0.001, 0.5, 3)
    # k = 2: 2 x 0.5 x (0.99^3 / 0.01 + 0.99^2) and 2 x 2 x 0.001.
    assert bound['terms'][1] == {'k': 2, 'policy': pytest.approx(97.0299 + 0.9801),
                                 'model': pytest.approx(0.004)}
    assert bound['best_k'] == 3
    assert bound_terms(0.1, 0.0, 3)['best_k'] == 1


def test_real_data_from_elsewhere_can_stand_for_outside():
    # One member says that the state stays, the other that it shrinks by a tenth.
    model = linear_model([np.eye(2), 0.9 * np.eye(2)], np.zeros((2, 2, 1)), np.zeros((2, 2)),
                         np.ones((2, 2)))
    dynamics = Dynamics(model, {'members': 2, 'step_std': [1.0, 1.0]})
    states, actions = walk(50, 0)

    def doubt(outside):
        return evaluate(dynamics, cart(), [(states, actions)], np.ones(2), 3, seed=0,
                        outside=outside).doubt
    assert doubt([(states + 1000.0, actions)])['auroc'] == 1.0
    assert doubt([(states, actions)])['auroc'] == pytest.approx(0.5)
    assert doubt([(states, actions)])['outside'] == 'the data given'
    # Without: states half the range beyond it.
    assert 0.8 < doubt([])['auroc'] <= 1.0


def test_gates():
    assert not Gate('', None, most=1.0).is_met
    assert Gate('', 0.95, 0.9, 0.98).is_met
    assert not Gate('', 0.99, 0.9, 0.98).is_met
    scores = evaluate(stays([1.0, 1.0]), cart(), [walk(50, 0)], np.ones(2), 3, seed=0)
    found = {gate.name: gate for gate in gates(cart(), scores)}
    assert found['R2 of position'].limits == 'at least 0.8'  # no simulation: as of hardware
    assert found['3-step error'].value == scores.k_step[-1]['error']


def test_report_and_card_show_every_score():
    dynamics, episodes = stays([1.0, 1.0], (0.0, 0.1)), [walk(60, 0)]
    recalibration = Recalibration.fit(OneStep.predict(dynamics, episodes), episodes, 0)
    scores = evaluate(dynamics, cart(), episodes, np.ones(2), 5, seed=0,
                      recalibration=recalibration)
    metadata = metadata_of(cart(), 2, data={'hash': 'abc', 'losses': ['a <gap>'], 'bags': [
        {'bag': 'run', 'transitions': 60, 'seconds': 6.0, 'hash': 'f' * 64}]})
    html = report.render(dynamics, cart(), episodes, scores, metadata, data='A & B', seed=0)
    assert html.count('src="data:image/') == html.count('<img ') == 7
    for part in ('A &amp; B', 'a &lt;gap&gt;', 'f' * 16, 'not met', 'R2 of position'):
        assert part in html
    text = card.render(metadata | {
        'holdout': scores.to_dict(), 'hidden_units': [8], 'activation': 'silu', 'seed': 0,
        'producer_version': '1'})
    assert f"| {scores.calibration_error['position']:.3f} |" in text
