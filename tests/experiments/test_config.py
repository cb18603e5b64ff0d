from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path

import pytest

from spikecl.continual import Finetune, Hlop, JointTraining
from spikecl.encoding import CrossEntropy, Direct, Rate
from spikecl.errors import ConfigError, PairingError, UsageError
from spikecl.experiments import Config, load_config, parse_config
from spikecl.experiments.config import CheckpointPolicy, RunOptions, apply_override, config_schema
from spikecl.kernels import Kernels
from spikecl.learner import TrainPlan
from spikecl.networks import Mlp, SpikingMlp
from spikecl.optim import Adam, Sgd
from spikecl.streams.scenarios import Permuted, SplitClasses
from spikecl.trainers import Bptt

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


def refused(table, error=ConfigError):
    """Return the message a table is refused with: one line, exit code 2."""
    with pytest.raises(error) as caught:
        parse_config(table)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message and message
    return message


# ---- defaults and files -------------------------------------------------------------------------


def test_defaults():
    assert parse_config({}) == Config(
        run=RunOptions(seed=0, threads=1, device="cpu"),
        data=parse_config({"data": {"name": "digits"}}).data,
        stream=Permuted(experiences=10),
        network=SpikingMlp(),
        encoding=Direct(),
        trainer=Bptt(),
        loss=CrossEntropy(),
        optimiser=Sgd(),
        train=TrainPlan(epochs=1, batch=64),
        checkpoint=CheckpointPolicy(every_steps=0, keep=2),
        kernels=Kernels(),
        methods=(Finetune(),),
    )


def test_every_section_of_a_file(tmp_path):
    path = tmp_path / "all.toml"
    path.write_text(
        """
        [run]
        seed = 7
        threads = 2
        [data]
        name = "mnist"
        [stream]
        name = "split_classes"
        experiences = 3
        [stream.split_classes]
        scenario = "task"
        [network]
        name = "mlp"
        hidden = [5, 6]
        [encoding]
        name = "rate"
        steps = 9
        [trainer]
        name = "bptt"
        [optimiser]
        name = "adam"
        lr = 0.25
        [optimiser.adam]
        weight_decay = 0.5
        [train]
        epochs = 4
        batch = 3
        eval_batch = 11
        evaluate = "all"
        [checkpoint]
        every_steps = 13
        keep = 5
        [kernels]
        scan = "fused"
        [method]
        name = "hlop"
        [method.hlop]
        rows = [[1, 0.5, 3], 4]
        """
    )
    config = load_config(path)
    assert config == Config(
        run=RunOptions(seed=7, threads=2),
        data=parse_config({"data": {"name": "mnist"}}).data,
        stream=SplitClasses(experiences=3, scenario="task"),
        network=Mlp(hidden=(5, 6)),
        encoding=Rate(steps=9),
        trainer=Bptt(),
        loss=CrossEntropy(),
        optimiser=Adam(lr=0.25, weight_decay=0.5),
        train=TrainPlan(epochs=4, batch=3, eval_batch=11, evaluate="all"),
        checkpoint=CheckpointPolicy(every_steps=13, keep=5),
        kernels=Kernels(scan="fused"),
        methods=(Hlop(rows=((1, 0.5, 3), 4)),),
    )
    assert (config.data.name, config.method) == ("mnist", "hlop")


@pytest.mark.parametrize("content", ["[run\n", "a = \n", "[run]\nseed = 1\nseed = 2\n"])
def test_what_is_not_toml_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML: .*line") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_binary_files_folders_and_missing_files_are_refused(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml is not TOML"):
        load_config(binary)
    with pytest.raises(ConfigError, match="cannot read .*Is a directory; give a TOML file"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        load_config(tmp_path / "none.toml")


# ---- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ('"3"', "3"),
        ("hlop", "hlop"),
        ("a b", "a b"),
        ("/a/b.npz", "/a/b.npz"),
        ("a=b", "a=b"),
        ("[1, [2, 3]]", [1, [2, 3]]),
        ('["a", "b"]', ["a", "b"]),
        ("{x = 1}", {"x": 1}),
        ("", ""),
    ],
)
def test_a_value_is_toml_or_else_the_bare_string(text, expected):
    table = {}
    apply_override(table, f"a.b={text}")
    assert table == {"a": {"b": expected}}
    assert type(table["a"]["b"]) is type(expected)


def test_overrides_reach_nested_tables_keep_neighbours_and_the_last_one_wins():
    table = {"a": {"b": {"c": 1, "d": 2}}}
    apply_override(table, "a.b.c=3")
    apply_override(table, "a.b.c=4")
    apply_override(table, "a.x.y.z=5")
    assert table == {"a": {"b": {"c": 4, "d": 2}, "x": {"y": {"z": 5}}}}


def test_overrides_of_a_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[train]\nepochs = 2\nbatch = 5\n")
    config = load_config(path, ["train.epochs=9", "method.name=hlop", "method.hlop.rows=[3]"])
    assert (config.train.epochs, config.train.batch) == (9, 5)
    assert config.methods == (Hlop(rows=(3,)),)


@pytest.mark.parametrize("bad", ["train.epochs", "epochs=3", "=3", ".=3", "train.=3", ""])
def test_a_malformed_override_is_refused_and_shows_how(bad):
    with pytest.raises(
        ConfigError, match="write section.key=value, as in train.epochs=3"
    ) as caught:
        apply_override({}, bad)
    assert f"--set {bad}:" in str(caught.value)


def test_an_override_below_a_value_is_refused():
    with pytest.raises(ConfigError, match="'epochs' is a value, not a section"):
        apply_override({"train": {"epochs": 1}}, "train.epochs.x=3")


# ---- unknown names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "given", "nearest"),
    [
        ({"trian": {}}, "section [trian]", "train"),
        ({"methods": {}}, "section [methods]", "method"),
        ({"run": {"sed": 1}}, "run.sed", "seed"),
        ({"train": {"epoch": 1}}, "train.epoch", "epochs"),
        ({"checkpoint": {"every_step": 1}}, "checkpoint.every_step", "every_steps"),
        ({"network": {"hiden": [3]}}, "network.hiden", "hidden"),
        ({"method": {"hlpo": {}}}, "method.hlpo", "hlop"),
        ({"optimiser": {"sgd": {"momentun": 0.5}}}, "optimiser.sgd.momentun", "momentum"),
        ({"method": {"name": "hlop", "hlop": {"row": [1]}}}, "method.hlop.row", "rows"),
        ({"method": {"hlop": {"row": [1]}}}, "method.hlop.row", "rows"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_and_lists_what_is_allowed(table, given, nearest):
    message = refused(table)
    assert given in message
    assert f"did you mean '{nearest}'?" in message
    assert nearest in message.partition("allowed: ")[2].split(", ")


@pytest.mark.parametrize(
    ("section", "given", "nearest"),
    [
        ("stream", "permutted", "permuted"),
        ("network", "spiking_mpl", "spiking_mlp"),
        ("encoding", "dierct", "direct"),
        ("trainer", "bpt", "bptt"),
        ("optimiser", "adm", "adam"),
        ("method", "hlpo", "hlop"),
    ],
)
def test_an_unknown_component_suggests_the_nearest(section, given, nearest):
    message = refused({section: {"name": given}}, UsageError)
    assert f"unknown {section} '{given}'; did you mean '{nearest}'?" in message


def test_without_a_near_name_the_allowed_ones_are_listed():
    message = refused({"method": {"name": "zzzz"}}, UsageError)
    assert "did you mean" not in message
    assert {"finetune", "hlop", "joint"} <= set(message.partition("allowed: ")[2].split(", "))


# ---- wrong types and ranges ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        ("run", "seed", -1, "greater than or equal to 0"),
        ("run", "seed", 1.5, "integer"),
        ("run", "seed", True, "integer"),
        ("run", "seed", "3", "integer"),
        ("run", "threads", 0, "greater than or equal to 1"),
        ("run", "device", "tpu", "'cpu' or 'cuda'"),
        ("data", "name", 3, "string"),
        ("train", "epochs", 0, "greater than or equal to 1"),
        ("train", "batch", -2, "greater than or equal to 1"),
        ("train", "eval_batch", 0, "greater than or equal to 1"),
        ("train", "evaluate", "some", "'seen_and_next', 'all' or 'present'"),
        ("checkpoint", "every_steps", -1, "greater than or equal to 0"),
        ("checkpoint", "keep", 0, "greater than or equal to 1"),
        ("stream", "experiences", 0, "greater than or equal to 1"),
        ("stream", "experiences", "3", "integer"),
        ("network", "hidden", 8, "write a list, as in [8]"),
        ("encoding", "steps", 0, "greater than or equal to 1"),
        ("optimiser", "lr", 0, "greater than 0"),
        ("optimiser", "lr", float("nan"), "finite"),
        ("optimiser", "lr", float("inf"), "finite"),
    ],
)
def test_a_wrong_value_is_named_where_the_user_wrote_it(section, key, value, allowed):
    message = refused({section: {key: value}})
    assert message.startswith(f"{section}.{key}: got {value!r}")
    assert allowed in message


def test_an_entry_of_an_array_is_named():
    message = refused({"network": {"hidden": [8, "a"]}})
    assert message.startswith("network.hidden.1: got 'a'") and "integer" in message


def test_two_mistakes_of_a_table_are_told_at_once():
    message = refused({"train": {"epochs": 0, "batch": "x"}})
    assert "train.epochs: got 0" in message and "train.batch: got 'x'" in message


@pytest.mark.parametrize(
    "table",
    [{"train": 3}, {"method": [{"name": "hlop"}]}, {"run": "x"}, {"data": None}],
)
def test_a_section_that_is_no_table_is_refused(table):
    section = next(iter(table))
    assert f"write it as a section [{section}]" in refused(table)


@pytest.mark.parametrize("text", ["1979-05-27", "07:32:00", "1979-05-27T07:32:00Z"])
@pytest.mark.parametrize("key", ["train.epochs", "optimiser.lr", "data.name"])
def test_dates_are_refused(tmp_path, text, key):
    path = tmp_path / "c.toml"
    path.write_text("")
    with pytest.raises(ConfigError, match="numbers, strings, booleans, arrays") as caught:
        load_config(path, [f"{key}={text}"])
    assert f"[{key.partition('.')[0]}" in str(caught.value)


@pytest.mark.parametrize("value", [3, [], "x"])
def test_a_component_table_that_is_no_table_is_refused(value):
    message = refused({"method": {"name": "hlop", "hlop": value}})
    assert "method.hlop" in message


# ---- choosing components ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [[], [1], {}, 3, None, ["hlop", 2], True])
def test_a_name_must_be_a_string_or_for_methods_a_list(name):
    assert "method.name: got" in refused({"method": {"name": name}})


@pytest.mark.parametrize("section", ["stream", "network", "encoding", "trainer", "optimiser"])
def test_other_sections_take_one_name(section):
    default = parse_config({}).table()[section]["name"]
    assert parse_config({section: {"name": [default]}}) == parse_config({})
    message = refused({section: {"name": [default, default]}})
    assert f"{section}.name: got 2 names; write one" in message
    assert "list" not in refused({section: {"name": 3}})


def test_several_methods_are_composed_in_the_order_given():
    config = parse_config({"method": {"name": ["hlop", "finetune"], "hlop": {"rows": [3]}}})
    assert config.methods == (Hlop(rows=(3,)), Finetune())
    assert config.method == "hlop+finetune"
    assert parse_config({"method": {"name": "hlop"}}).method == "hlop"


def test_a_method_twice_is_refused():
    assert "hlop" in refused({"method": {"name": ["hlop", "hlop"]}}, PairingError)


@pytest.mark.parametrize(
    ("section", "key", "value", "component"),
    [
        ("stream", "experiences", 3, "permuted"),
        ("stream", "old_data", True, "permuted"),
        ("network", "hidden", [7], "spiking_mlp"),
        ("encoding", "steps", 3, "direct"),
        ("optimiser", "lr", 0.5, "sgd"),
    ],
)
def test_a_common_key_equals_the_key_in_the_component_table(section, key, value, component):
    common = parse_config({section: {key: value}})
    assert common == parse_config({section: {component: {key: value}}})
    assert common != parse_config({})
    message = refused({section: {key: value, component: {key: value}}})
    assert message.startswith(f"{section}.{key} is also given in [{section}.{component}]")


def test_common_keys_go_to_the_chosen_component():
    config = parse_config({"optimiser": {"name": "adam", "lr": 0.5}})
    assert config.optimiser == Adam(lr=0.5)
    config = parse_config({"network": {"name": "mlp", "hidden": [3]}})
    assert config.network == Mlp(hidden=(3,))


def test_a_common_key_that_the_component_lacks_is_refused():
    message = refused({"stream": {"name": "rotated", "experiences": 3}})
    assert message.startswith("stream.experiences: 'rotated' has no such parameter")
    assert "degrees" in message


def test_tables_of_components_not_chosen_are_checked():
    assert "optimiser.adam.lr: got -1" in refused({"optimiser": {"adam": {"lr": -1}}})
    assert "network.mlp.hidden: got 3" in refused({"network": {"mlp": {"hidden": 3}}})
    assert "stream.joint.base: got 'x'" in refused({"stream": {"joint": {"base": "x"}}})


def test_tables_of_components_not_chosen_change_neither_result_nor_identity():
    plain = parse_config({})
    crowded = parse_config(
        {
            "optimiser": {"adam": {"lr": 0.9}},
            "network": {"mlp": {"hidden": [3]}},
            "method": {"hlop": {"rows": [3]}, "joint": {"restart": False}},
            "stream": {"rotated": {"degrees": [1.0]}},
        }
    )
    assert crowded == plain
    assert crowded.table() == plain.table()
    assert crowded.identity() == plain.identity()


# ---- tables and identity ------------------------------------------------------------------------

RICH = {
    "run": {"seed": 3, "threads": 2},
    "data": {"name": "mnist"},
    "stream": {"name": "split_classes", "experiences": 2, "split_classes": {"order": [1, 0]}},
    "network": {"name": "spiking_mlp", "hidden": [3, 4], "spiking_mlp": {"neuron": {"beta": 0.25}}},
    "encoding": {"name": "rate", "steps": 3},
    "optimiser": {"name": "adam", "lr": 0.5, "adam": {"beta1": 0.5}},
    "train": {"epochs": 2, "evaluate": "all"},
    "checkpoint": {"every_steps": 3, "keep": 1},
    "method": {"name": ["hlop", "finetune"], "hlop": {"rows": [[1, 0.5, 2], 4]}},
}


@pytest.mark.parametrize("table", [{}, RICH, *(tomllib.loads(p.read_text()) for p in EXAMPLES)])
def test_the_table_rebuilds_the_same_configuration(table):
    config = parse_config(table)
    again = parse_config(json.loads(json.dumps(config.table())))
    assert again == config
    assert again.table() == config.table()
    assert again.identity() == config.identity()


def test_the_table_has_every_default():
    table = parse_config({}).table()
    assert table["run"] == {"seed": 0, "threads": 1, "device": "cpu"}
    assert table["optimiser"] == {
        "name": "sgd",
        "sgd": {
            "lr": 0.1,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "schedule": {"kind": "constant", "warmup": 0.0},
            "state": "fresh",
        },
    }
    assert table["method"] == {"name": ["finetune"], "finetune": {"restart": False}}


def shuffled(node, rng):
    if not isinstance(node, dict):
        return node
    keys = list(node)
    rng.shuffle(keys)
    return {key: shuffled(node[key], rng) for key in keys}


def test_identity_does_not_depend_on_the_order_of_keys():
    expected = json.dumps(parse_config(RICH).identity())
    for number in range(10):
        table = shuffled(RICH, random.Random(number))
        assert json.dumps(parse_config(table).identity()) == expected


def test_identity_leaves_out_seed_and_checkpoints_and_nothing_else():
    base = parse_config(RICH).identity()
    for section, key, value in [("run", "seed", 9), ("checkpoint", "keep", 7)]:
        changed = {**RICH, section: {**RICH[section], key: value}}
        assert parse_config(changed).identity() == base
    for section, key, value in [
        ("run", "threads", 1),
        ("run", "device", "cuda"),
        ("data", "name", "digits"),
        ("stream", "experiences", 1),
        ("network", "hidden", [3]),
        ("encoding", "steps", 4),
        ("optimiser", "lr", 0.25),
        ("train", "epochs", 3),
        ("method", "name", ["hlop"]),
        ("method", "hlop", {"rows": [1]}),
    ]:
        changed = {**RICH, section: {**RICH[section], key: value}}
        assert parse_config(changed).identity() != base, (section, key)


def test_asking_for_the_table_changes_nothing():
    config = parse_config(RICH)
    config.identity()["network"]["name"] = "x"
    config.table()["run"]["seed"] = 99
    assert config == parse_config(RICH)
    assert config.table()["run"]["seed"] == 3


def test_parsing_leaves_the_given_table_as_it_was():
    table = json.loads(json.dumps(RICH))
    parse_config(table)
    assert table == RICH


# ---- JSON schema --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validate():
    jsonschema = pytest.importorskip("jsonschema")
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    return lambda table: [error.message for error in validator.iter_errors(table)]


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_the_schema_accepts_the_examples(validate, path):
    assert validate(tomllib.loads(path.read_text())) == []


SHARED = [  # keys that components share, each with values of its own
    {"stream": {"name": "split_classes", "scenario": "class"}},
    {"stream": {"scenario": "domain", "experiences": 3}},
    {"encoding": {"steps": 4}},
]


@pytest.mark.parametrize("table", [{}, RICH, *SHARED])
def test_the_schema_accepts_what_is_accepted(validate, table):
    assert validate(table) == []
    assert validate(parse_config(table).table()) == []


@pytest.mark.parametrize(
    "table",
    [
        {"trian": {}},
        {"train": {"epoch": 1}},
        {"train": {"epochs": 0}},
        {"train": {"epochs": "1"}},
        {"method": {"name": "hlpo"}},
        {"method": {"name": []}},
        {"method": {"hlop": {"row": [1]}}},
        {"stream": {"scenario": "clas"}},
        {"network": {"name": ["mlp"], "hidden": "x"}},
        {"network": {"hidden": ["a"]}},
        {"optimiser": {"lr": -1}},
        {"run": {"device": "tpu"}},
        {"run": 3},
    ],
)
def test_the_schema_rejects_what_is_rejected(validate, table):
    refused(table, UsageError)
    assert validate(table)


def test_the_schema_can_be_written_to_a_file():
    schema = config_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert '"$defs":' not in json.dumps(schema["properties"])


def test_joint_training_is_a_method_of_the_configuration():
    config = parse_config({"stream": {"old_data": True}, "method": {"name": "joint"}})
    assert config.methods == (JointTraining(),)


# ---- known defects ------------------------------------------------------------------------------


def test_a_scenario_that_a_stream_does_not_have():
    told = refused({"stream": {"scenario": "class"}})
    assert "stream.scenario" in told and "'domain', 'task' or 'free'" in told
    assert "'joint' has no such" in refused({"stream": {"name": "joint", "scenario": "task"}})


def test_a_component_table_that_is_no_table_is_told_so():
    assert "did you mean" not in refused({"method": {"name": "hlop", "hlop": 3}})


def test_messages_do_not_show_the_insides_of_the_checker():
    message = refused({"method": {"name": "hlop", "hlop": {"rows": [-1]}}})
    assert "constrained" not in message and "union" not in message


@pytest.mark.parametrize("value", [[], [0], [-1]])
def test_sizes_are_checked_in_the_configuration_already(value):
    assert "network.mlp.hidden" in refused({"network": {"mlp": {"hidden": value}}})


def test_degrees_are_checked_in_the_configuration_already():
    assert "stream.rotated.degrees" in refused({"stream": {"rotated": {"degrees": []}}})
