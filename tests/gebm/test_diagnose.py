"""Verdicts on synthetic chains."""

import sys

import numpy as np
import pytest

from gebm import diagnose as module
from gebm import findings
from gebm.arviz_data import from_groups
from gebm.diagnose import diagnose
from gebm.draw_file import DrawFile
from gebm.modes import cuts_between_modes, modes_visited
from gebm.streaming import read_draws

az = pytest.importorskip("arviz")
xarray = pytest.importorskip("xarray")

CHAINS, DRAWS, DIM = 4, 1000, 10
SHAPE = (CHAINS, DRAWS)


def autoregressive(shape, correlation, seed=0):
    """Chains of shape (chain, draw, ...) with standard normal margins."""
    noise = np.random.default_rng(seed).normal(size=shape)
    chains = noise.copy()
    for t in range(1, shape[1]):
        chains[:, t] = correlation * chains[:, t - 1] + np.sqrt(1 - correlation**2) * noise[:, t]
    return chains


def good(correlation=0.5, seed=0):
    """Draws and every statistic of a run without faults."""
    rng, z = np.random.default_rng(seed), autoregressive((*SHAPE, DIM), correlation, seed)
    return {"z": z, "mu": autoregressive(SHAPE, correlation, seed + 1)}, {
        "acceptance_rate": rng.beta(8, 2, SHAPE),
        "diverging": np.zeros(SHAPE, bool),
        "energy": rng.gamma(DIM, 1.0, SHAPE),
        "energy_error": rng.normal(size=SHAPE),
        "energy_x": 0.5 * (z**2).sum(-1),
        "kinetic_temperature": rng.chisquare(DIM, SHAPE) / DIM,
        "lp": -0.5 * (z**2).sum(-1),
        "n_steps": np.full(SHAPE, 7),
        "step_size": np.full(SHAPE, 0.1),
        "warmup_converged": np.ones(SHAPE, bool),
    }


def verdict(posterior, statistics=None):
    return diagnose(from_groups(posterior, statistics))


def assert_one_warning(found, text):
    assert len(found.warnings) == 1 and text in found.warnings[0], found.report
    assert found.report.count("\n!! ") == 1


@pytest.mark.parametrize("seed", range(3))
def test_good_chains_give_no_warnings(seed, capsys):
    found = verdict(*good(seed=seed))
    assert found.warnings == []
    assert (found.num_chains, found.num_draws, found.num_divergences, found.num_modes) == (4, 1000, 0, 1)
    assert found.modes_visited == ((0,),) * 4 and found.warmup_converged == (True,) * 4
    assert capsys.readouterr().out == ""  # only `print` prints
    assert repr(found) == str(found) == found.report
    assert found.report.startswith("4 chains of 1000 draws: no problems found.")
    assert found.report.count("\nok ") == 9 and "!! " not in found.report


def test_numbers_are_those_of_arviz():
    posterior, statistics = good()
    found = verdict(posterior, statistics)
    scalars = {f"z[{i}]": posterior["z"][..., i] for i in range(DIM)} | {"mu": posterior["mu"]}
    scalars |= {name: statistics[name] for name in ("energy_x", "lp")}
    rhat = {name: float(az.rhat(value)) for name, value in scalars.items()}
    bulk = {name: float(az.ess(value, method="bulk")) for name, value in scalars.items()}
    tail = {name: float(az.ess(value, method="tail", prob=(0.05, 0.95))) for name, value in scalars.items()}
    assert found.max_rhat == pytest.approx(max(rhat.values())) and rhat[found.max_rhat_of] == found.max_rhat
    assert found.min_ess_bulk == pytest.approx(min(bulk.values()))
    assert bulk[found.min_ess_bulk_of] == pytest.approx(found.min_ess_bulk)
    assert found.min_ess_tail == pytest.approx(min(tail.values()))
    for chain, energy in enumerate(statistics["energy"]):
        bfmi = sum((energy[1:] - energy[:-1]) ** 2) / (DRAWS - 1) / np.var(energy)
        assert found.bfmi[chain] == pytest.approx(bfmi)
    assert found.acceptance_rate == pytest.approx(statistics["acceptance_rate"].mean())
    assert found.kinetic_temperature == pytest.approx(statistics["kinetic_temperature"].mean())
    mcse = float(az.mcse(statistics["kinetic_temperature"], method="mean"))
    assert found.kinetic_temperature_mcse == pytest.approx(mcse, rel=1e-2)


def test_nothing_but_draws():
    found = verdict({"z": good()[0]["z"]})
    assert found.warnings == [] and found.report.count("\nok ") == 4
    names = ("num_divergences", "bfmi", "acceptance_rate", "kinetic_temperature", "warmup_converged")
    assert all(getattr(found, name) is None for name in names)


def test_the_other_container_is_read_as_well():
    """Whichever ArviZ is installed: `DataTree` is what the other generation returns."""
    groups = dict(zip(("posterior", "sample_stats"), good(), strict=True))
    tree = xarray.DataTree.from_dict(
        {
            group: xarray.Dataset(
                {k: (("chain", "draw", *(f"{k}_{i}" for i in range(v.ndim - 2))), v) for k, v in of.items()}
            )
            for group, of in groups.items()
        }
    )
    assert diagnose(tree) == verdict(*groups.values())


def test_a_chain_stuck_in_another_mode():
    posterior, statistics = good()
    posterior["z"][2, :, 3] += 8.0
    found = verdict(posterior, statistics)
    assert found.num_modes == 2 and found.max_rhat > 1.1 and found.max_rhat_of == "z[3]"
    (stuck,) = found.modes_visited[2]
    assert [set(found.modes_visited[chain]) for chain in (0, 1, 3)] == [{1 - stuck}] * 3
    modes = [warning for warning in found.warnings if "modes found" in warning]
    assert len(modes) == 1 and "tempered" in modes[0]
    assert f"chain 2 visited mode {stuck}; chains 0, 1, 3 visited mode {1 - stuck}." in modes[0]
    assert any("R-hat" in warning and "chains disagree" in warning for warning in found.warnings)


def test_a_stuck_chain_among_many_in_many_dimensions():
    """No principal component of 200 equal ones shows it; the direction between the chains' means does."""
    z = autoregressive((16, 200, 200), 0.3)
    z[5, :, 11] += 9.0
    z[:, :, 12:16] *= 3.0  # the principal components
    found = verdict({"z": z})
    assert found.num_modes == 2 and "between chains" in found.modes_along
    assert len({found.modes_visited[chain] for chain in range(16) if chain != 5}) == 1
    assert found.modes_visited[5] != found.modes_visited[0]
    assert any("every chain: chain 5 visited" in warning for warning in found.warnings)


def test_noise_of_means_in_many_dimensions_is_no_mode():
    """On the draws that they were taken from, these chains' means lie six standard deviations apart."""
    z = np.random.default_rng(0).normal(size=(4, 200, 4000))
    assert modes_of(z).shares.shape[1] == 1
    stuck = z.copy()
    stuck[3, :, 17] += 30.0
    assert modes_of(stuck).shares.shape[1] == 2


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_lumps_of_chains_that_move_slowly_are_no_modes(seed):
    z = autoregressive((16, 300, 3), 0.98, seed)
    assert modes_of(z).shares.shape[1] == 1


def test_narrow_modes_far_apart_are_told_from_each_other():
    """Five of them, each visited by its own chains: the spread within a chain is that of a mode."""
    z = np.random.default_rng(0).normal(size=(20, 200, 2))
    z[..., 0] += 15.0 * (np.arange(20) % 5)[:, None]
    found = modes_of(z)
    assert found.shares.shape[1] == 5 and all(len(visited) == 1 for visited in found.visited)


def modes_of(z):
    return modes_visited(z, {}, lambda values: float(az.ess(values)))


def test_modes_that_show_in_the_energy_only():
    posterior, statistics = good()
    statistics["energy_x"][1] += 60.0
    found = verdict(posterior, statistics)
    assert found.modes_along == "energy_x" and found.num_modes == 2
    assert any("modes found (along" in warning for warning in found.warnings)


def test_chains_that_visit_both_modes_are_not_blamed():
    posterior, statistics = good(correlation=0.0)
    posterior["z"][..., 3] += 8.0 * (np.random.default_rng(1).random(SHAPE) < 0.3)
    found = verdict(posterior, statistics)
    assert found.num_modes == 2 and found.modes_visited == ((0, 1),) * CHAINS and found.warnings == []
    assert "no chain missed one" in found.report


def test_a_mode_that_short_chains_can_miss_is_not_held_against_them():
    z = np.random.default_rng(0).normal(size=(200, 20, 2))
    z[..., 0] += 12.0 * (np.random.default_rng(1).random((200, 20)) < 0.1)
    found = verdict({"z": z})
    assert found.num_modes == 2 and len(set(found.modes_visited)) > 1
    assert not [warning for warning in found.warnings if "modes" in warning]


def test_few_effective_draws():
    posterior = {"z": autoregressive((*SHAPE, 2), 0.97, seed=3)}
    found = verdict(posterior)
    assert 1 < found.min_ess_bulk < 200
    few = [warning for warning in found.warnings if " ESS is " in warning]
    assert any("Smallest bulk ESS is" in warning and "at least 400 is recommended" in warning for warning in few)
    assert "times longer" in few[0]
    assert found.num_modes == 1


def test_divergences():
    posterior, statistics = good()
    statistics["diverging"][1, [5, 17, 400]] = True
    found = verdict(posterior, statistics)
    assert_one_warning(found, "3 divergent transitions (0.075% of the draws)")
    assert found.num_divergences == 3 and "smaller step size" in found.warnings[0]


def test_low_bfmi():
    posterior, statistics = good()
    statistics["energy"][2] = autoregressive((1, DRAWS), 0.98)[0]
    statistics["energy"][0] = autoregressive((1, DRAWS), 0.98, seed=5)[0]
    found = verdict(posterior, statistics)
    assert_one_warning(found, "fresh momenta do not reach the tails of the energy in chains 0, 2")
    assert found.bfmi[2] < 0.1 < 1.5 < found.bfmi[1]


def test_low_bfmi_of_persistent_momentum_is_no_fault_once_energies_are_explored():
    posterior, statistics = good()
    statistics["energy"] = autoregressive(SHAPE, 0.87, seed=7)
    assert float(az.ess(statistics["energy"])) < 400  # otherwise the next case shows nothing
    assert_one_warning(verdict(posterior, statistics), "BFMI")
    long = {name: np.concatenate([value] * 4, axis=1) for name, value in posterior.items()}
    found = verdict(long, {"energy": autoregressive((CHAINS, 4 * DRAWS), 0.87, seed=7)})
    assert found.warnings == [] and max(found.bfmi) < 0.3 and "well explored" in found.report


def test_low_acceptance():
    posterior, statistics = good()
    statistics["acceptance_rate"] *= 0.2
    assert_one_warning(verdict(posterior, statistics), "Mean acceptance rate is 0.16")
    statistics["acceptance_rate"][:] = np.nan
    assert_one_warning(verdict(posterior, statistics), "acceptance rate is nan")


@pytest.mark.parametrize(
    "factor, draws, dim, warns",
    [
        (0.9, DRAWS, 10, True),
        (1.1, DRAWS, 10, True),
        (0.985, DRAWS, 500, False),
        (0.96, 30, 10, False),
        (0.5, 30, 10, True),
    ],
    ids=["cold", "hot", "within 2 %", "within 4 standard errors", "cold and short"],
)
def test_temperature(factor, draws, dim, warns):
    rng = np.random.default_rng(0)
    temperature = factor * rng.chisquare(dim, (CHAINS, draws)) / dim
    posterior = {"z": rng.normal(size=(CHAINS, draws))}
    found = verdict(posterior, {"kinetic_temperature": temperature})
    assert abs(found.kinetic_temperature - factor) < 5 * found.kinetic_temperature_mcse
    assert any("the draws are biased" in warning for warning in found.warnings) == warns, found.report
    assert ("no discretisation bias" in found.report) != warns


def test_unconverged_warmup():
    posterior, statistics = good()
    statistics["warmup_converged"][3] = False
    found = verdict(posterior, statistics)
    assert_one_warning(found, "Warm-up did not converge in chain 3")
    assert found.warmup_converged == (True, True, True, False)


def test_a_single_chain_is_never_enough():
    posterior, _ = good(correlation=0.0)
    found = verdict({"z": posterior["z"].reshape(1, -1, DIM)})
    assert_one_warning(found, "the halves of the only chain agree")
    drifting = {"z": np.linspace(0, 3, DRAWS)[None] + np.random.default_rng(0).normal(size=(1, DRAWS))}
    found = verdict(drifting)
    assert found.max_rhat > 1.1 and "halves of the only chain disagree" in found.warnings[0]


def test_values_that_are_not_finite():
    posterior, statistics = good()
    posterior["z"][0, 10, 4] = np.nan
    posterior["z"][1, 11, 5] = np.inf
    found = verdict(posterior, statistics)
    assert_one_warning(found, "2 values are NaN or infinite")
    assert found.num_nonfinite == 2 and np.isfinite(found.max_rhat)


def test_quantities_that_do_not_vary():
    posterior, _ = good()
    posterior["L"] = np.zeros((*SHAPE, 2, 2))
    assert verdict(posterior).warnings == []
    assert_one_warning(verdict({"z": np.ones((*SHAPE, 2))}), "No quantity with finite values varies")
    apart = {"z": np.arange(4.0)[:, None] * np.ones(SHAPE)}
    assert verdict(apart).max_rhat > 1e3


def test_axes_are_named_in_full():
    value = autoregressive((*SHAPE, 3, 2), 0.0)
    value[..., 2, 1] = autoregressive(SHAPE, 0.99)
    assert verdict({"w": value}).max_rhat_of == "w[2, 1]"


def test_long_runs_are_read_in_blocks_and_thinned(monkeypatch, tmp_path):
    posterior, statistics = good()
    posterior["z"][..., 7] = autoregressive(SHAPE, 0.95)
    whole = verdict(posterior)
    monkeypatch.setattr(findings, "_BLOCK", 8 * CHAINS * DRAWS * 3)
    assert verdict(posterior) == whole and whole.min_ess_bulk_of == "z[7]"
    monkeypatch.setattr(module, "_MAX_VALUES", CHAINS * DRAWS // 4)
    variables = {
        "z": ((DIM,), "f8", "posterior"),
        "mu": ((), "f8", "posterior"),
        "diverging": ((), bool, "sample_stats"),
    }
    statistics["diverging"][0, 1] = True  # not one of the draws left
    with DrawFile.create(tmp_path / "draws.nc", CHAINS, 2 * DRAWS, variables) as file:
        file.append(posterior, {"diverging": statistics["diverging"]})
    found = diagnose(read_draws(tmp_path / "draws.nc"))
    assert found.num_draws == DRAWS and found.num_divergences == 1
    assert f"{found.min_ess_bulk_of}, from one draw in 4" in found.report
    expected = min(float(az.ess(posterior["z"][:, ::4, i])) for i in range(DIM))
    assert found.min_ess_bulk == pytest.approx(min(expected, float(az.ess(posterior["mu"][:, ::4]))))


def test_what_cannot_be_judged():
    with pytest.raises(ValueError, match="Expected at least 8 draws of each chain; got 7"):
        verdict({"z": np.random.normal(size=(2, 7))})
    with pytest.raises(ValueError, match="Expected data with a posterior"):
        diagnose(xarray.DataTree.from_dict({"prior": xarray.Dataset()}))


def test_without_arviz_the_extra_is_named(monkeypatch):
    data = from_groups(*good())
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[arviz\]"'):
        diagnose(data)


@pytest.mark.parametrize("num, far", [(80, -30.0), (400, 1e5)])
def test_one_draw_far_away_is_no_mode(num, far):
    values = np.random.default_rng(0).normal(size=num)
    values[3] = far
    assert len(cuts_between_modes(values, 1.0, num / 2)) == 0
