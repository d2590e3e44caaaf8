"""Recipes: what is read, and every way in which one is refused, by real TOML files."""

import json
from pathlib import Path
from typing import Literal, get_args

import pytest

from edgeopt.errors import EdgeoptError, RecipeError, TargetError, UsageError
from edgeopt.recipe import (
    builtin_recipes,
    default_recipe,
    find_recipe,
    load_recipe,
    parse_override,
    settings_for,
)
from edgeopt.settings import InputSettings, ParityLimits, QuantizeSettings, TargetOverrides
from edgeopt.steps import DistillSettings, PruneSettings, Step
from edgeopt.typed_toml import Decoder, read_toml

PRUNE = '[[compress]]\nmethod = "prune"\n'

MINIMAL = """
[model]
factory = "net.py:make"

[model.inputs.image]
shape = [1, 3, 32, 32]

[calibration]
dataset = "digits"
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(extra: str = "", *, name: str = "my.toml", head: str = "", base: str = MINIMAL) -> str:
    Path(name).write_text(head + base + extra, encoding="utf-8")
    return name


def refusal(path: str, **overrides: object) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value)


# ---------------------------------------------------------------- what is read


def test_load_recipe_fills_defaults_when_sections_are_absent() -> None:
    loaded = load_recipe(written())
    assert loaded.recipe.name == "my"
    assert loaded.recipe.model.inputs == {"image": InputSettings(shape=(1, 3, 32, 32))}
    assert loaded.recipe.compress == {}
    assert loaded.recipe.parity == ParityLimits()


def test_load_recipe_reads_every_kind_of_value_when_written() -> None:
    extra = """
    [calibration.options]
    mean = [0.5, 1]
    deep = { on = true, word = "a" }
    [[compress]]
    method = "prune"
    pruning_ratio = 0
    ignored_layers = ["head", "stem"]
    [compress.pruning_ratios]
    "features.0" = 0.25
    [[compress]]
    method = "distill"
    temperature = 2
    patience = 3
    [targets.x86]
    input_layout = "NHWC"
    output_layout = "NCHW"
    """
    recipe = load_recipe(written(extra, head='name = "net-1.0"\n')).recipe
    assert recipe.name == "net-1.0"
    assert recipe.calibration.options == {"mean": [0.5, 1], "deep": {"on": True, "word": "a"}}
    prune, distill = recipe.compress.values()
    assert isinstance(prune, PruneSettings)
    assert prune.ignored_layers == ("head", "stem")
    assert prune.pruning_ratios == {"features.0": 0.25}
    assert isinstance(prune.pruning_ratio, float)
    assert isinstance(distill, DistillSettings)
    assert (distill.temperature, distill.patience) == (2.0, 3)
    assert (recipe.targets["x86"].input_layout, recipe.targets["x86"].output_layout) == ("NHWC", "NCHW")


def test_load_recipe_starts_paths_from_its_folder_when_called_from_elsewhere(tmp_path: Path) -> None:
    Path("recipes").mkdir()
    base = MINIMAL.replace('factory = "net.py:make"', 'path = "../nets/a.onnx"')
    loaded = load_recipe(written(name="recipes/my.toml", base=base))
    assert loaded.folder == tmp_path / "recipes"
    assert loaded.source == tmp_path / "recipes" / "my.toml"
    assert loaded.recipe.model.path == tmp_path / "recipes" / ".." / "nets" / "a.onnx"
    assert loaded.resolved()["model"]["path"] == "../nets/a.onnx"


def test_load_recipe_accepts_a_byte_order_mark_when_an_editor_wrote_one() -> None:
    Path("my.toml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_recipe("my.toml").recipe.model.factory == "net.py:make"


@pytest.mark.parametrize("builtin", builtin_recipes(), ids=lambda builtin: builtin.name)
def test_load_recipe_reads_a_builtin_recipe_when_named(builtin) -> None:
    loaded = load_recipe(builtin.name)
    assert loaded.source == builtin.path
    assert builtin.title
    json.dumps(loaded.resolved(), allow_nan=False)


def test_builtin_recipes_hold_the_default_when_installed() -> None:
    assert default_recipe() in [recipe.name for recipe in builtin_recipes()]


def test_default_recipe_is_the_local_file_when_there_is_one() -> None:
    written(name="edgeopt.toml")
    assert default_recipe() == Path("edgeopt.toml")


# ---------------------------------------------------------------- written out


def test_resolved_names_every_default_when_nothing_is_set() -> None:
    resolved = load_recipe(written()).resolved()
    assert resolved["export"] == {"opset": 18, "max_relative_error": 1e-4, "num_samples": 4}
    assert resolved["compress"] == []
    assert resolved["model"]["inputs"]["image"]["shape"] == [1, 3, 32, 32]
    assert json.loads(json.dumps(resolved)) == resolved


def test_resolved_holds_no_absolute_path_when_the_recipe_does(tmp_path: Path) -> None:
    base = (
        MINIMAL.replace("net.py:make", f"{tmp_path}/net.py:make")
        .replace('"digits"', f'"{tmp_path}/sets/digits"')
        .replace("[model.inputs", 'weights = "/opt/w.pth"\n[model.inputs')
    )
    extra = '[calibration.options]\nroot = "/data/photos"\n[quantize.nodes]\n"/head/Conv" = "float"\n'
    loaded = load_recipe(written(extra, base=base))
    resolved = loaded.resolved()
    assert loaded.recipe.model.weights == "/opt/w.pth"
    assert resolved["model"]["factory"] == "net.py:make"
    assert resolved["model"]["weights"] == "w.pth"
    assert resolved["calibration"]["dataset"] == "sets/digits"
    assert resolved["calibration"]["options"] == {"root": "photos"}
    assert resolved["quantize"]["nodes"] == {"/head/Conv": "float"}  # a node's name, not a path


# ---------------------------------------------------------------- overrides


def test_load_recipe_replaces_a_value_when_overridden() -> None:
    loaded = load_recipe(written(PRUNE + "pruning_ratio = 0.5\n"), {"compress.prune.pruning_ratio": 0.3})
    assert loaded.recipe.compress == {"prune": PruneSettings(pruning_ratio=0.3)}


def test_load_recipe_creates_a_section_when_an_override_needs_it() -> None:
    overrides = {'compress.prune.pruning_ratios."features.0"': 0.3, "targets.arm64.parity.max_steps": 7}
    loaded = load_recipe(written(), overrides)
    assert loaded.recipe.compress == {"prune": PruneSettings(pruning_ratios={"features.0": 0.3})}
    assert settings_for(loaded.recipe, "arm64")[1].max_steps == 7


def test_load_recipe_switches_a_stage_off_when_overridden_with_none() -> None:
    assert load_recipe(written(PRUNE), {"compress.prune": None}).recipe.compress == {}
    assert load_recipe(written("[train]\n"), {"train": None}).recipe.train is None


def test_load_recipe_keeps_the_order_of_steps_and_names_them_when_a_method_comes_twice() -> None:
    steps = ("prune", "finetune", "prune", 'distill"\nname = "last')
    loaded = load_recipe(written("".join(f'[[compress]]\nmethod = "{step}"\n' for step in steps)))
    assert list(loaded.recipe.compress) == ["prune", "finetune", "prune-2", "last"]
    assert [step["name"] for step in loaded.resolved()["compress"]] == ["prune", "finetune", "prune-2", "last"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.gamma=0.3", ("train.gamma", 0.3)),
        ("train.optimizer=sgd", ("train.optimizer", "sgd")),
        ('train.optimizer="sgd"', ("train.optimizer", "sgd")),
        ("model.outputs=['a', 'b']", ("model.outputs", ["a", "b"])),
        ("model.factory=net.py:make=x", ("model.factory", "net.py:make=x")),
        ("a = true", ("a", True)),
        ("a=1\nb=2", ("a", "1\nb=2")),
        ("a=", ("a", "")),
    ],
)
def test_parse_override_reads_toml_or_a_bare_string_when_given(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.gamma", "=3", " = 3"])
def test_parse_override_refuses_when_key_or_equals_is_missing(text: str) -> None:
    with pytest.raises(UsageError, match="expected key=value"):
        parse_override(text)


@pytest.mark.parametrize("key", ["", "prune..x", ".", "a=1\nb", "a b", "# a"])
def test_load_recipe_refuses_an_override_when_its_key_is_no_key(key: str) -> None:
    with pytest.raises(RecipeError, match="override"):
        load_recipe(written(), {key: 1})


def test_load_recipe_refuses_an_override_when_it_goes_through_a_value() -> None:
    assert refusal(written(), model__factory__x=1) == (
        "override 'model.factory.x': 'model.factory' is a value, not a section"
    )


def test_load_recipe_says_override_when_the_fault_is_not_in_the_file() -> None:
    assert refusal(written(), compress__prune__prunning_ratio=0.5) == (
        "my.toml: [compress.prune] unknown key 'prunning_ratio' (an override, not in the file)\n"
        "  hint: did you mean 'pruning_ratio'?"
    )
    assert refusal(written(), compress__prune__pruning_ratio="half") == (
        'my.toml: [compress.prune] pruning_ratio: expected a number, got the string "half" '
        "(an override, not in the file)"
    )


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            PRUNE + "prunning_ratio = 0.5",
            "my.toml: [compress.prune] unknown key 'prunning_ratio'\n  hint: did you mean 'pruning_ratio'?",
        ),
        ("[trai]", "my.toml: unknown key 'trai'\n  hint: did you mean 'train'?"),
        (
            PRUNE + 'pruning_ratio = "half"',
            'my.toml: [compress.prune] pruning_ratio: expected a number, got the string "half"',
        ),
        (PRUNE + "round_to = true", "my.toml: [compress.prune] round_to: expected an integer, got the boolean true"),
        (
            PRUNE + "pruning_ratio = true",
            "my.toml: [compress.prune] pruning_ratio: expected a number, got the boolean true",
        ),
        (PRUNE + "round_to = 8.0", "my.toml: [compress.prune] round_to: expected an integer, got the number 8.0"),
        ("[parity]\nmin_cosine = nan", "my.toml: [parity] min_cosine: expected a finite number, got nan"),
        ("[parity]\nmin_sqnr_db = -inf", "my.toml: [parity] min_sqnr_db: expected a finite number, got -inf"),
        (
            PRUNE + 'scope = "all"',
            "my.toml: [compress.prune] scope: expected one of 'local', 'global', 'sensitivity', got the string \"all\"",
        ),
        (
            PRUNE + "budget = { num_macs = 0.5, latency = 0.5 }",
            "my.toml: [compress.prune.budget] a budget is one of num_macs, model_bytes and latency, "
            "got num_macs, latency",
        ),
        (
            PRUNE + "scope = 1",
            "my.toml: [compress.prune] scope: expected one of 'local', 'global', 'sensitivity', got the integer 1",
        ),
        (
            PRUNE + 'ignored_layers = "a"',
            'my.toml: [compress.prune] ignored_layers: expected an array, got the string "a"',
        ),
        (
            PRUNE + 'ignored_layers = ["a", 2]',
            "my.toml: [compress.prune] ignored_layers[1]: expected a string, got the integer 2",
        ),
        (
            PRUNE + '[compress.pruning_ratios]\n"features.0" = "x"',
            'my.toml: [compress.prune.pruning_ratios] "features.0": expected a number, got the string "x"',
        ),
        ("[[train]]", "my.toml: train: expected a section, got an array"),
        (PRUNE + "pruning_ratio = 1.0", "my.toml: [compress.prune] a pruning ratio must be in [0, 1), got 1.0"),
        (
            "[model.inputs.extra]\nshape = [2, 3]\nlayout = 'any'",
            "my.toml: [model.inputs.extra] the batch size of an input shape must be 1, got [2, 3]\n"
            "  hint: write dynamic_batch = true for a network that takes any batch size",
        ),
        ("[model.inputs.extra]\nshap = [1]", "my.toml: [model.inputs.extra] unknown key 'shap'"),
        ("[model.inputs.extra]", "my.toml: [model.inputs.extra] missing key 'shape'"),
        (
            "[calibration.options]\nday = 2024-01-01",
            "my.toml: [calibration.options] day: expected a string, number, boolean, array or section, "
            "got date 2024-01-01",
        ),
        ("[calibration.options]\na = [nan]", "my.toml: [calibration.options] a[0]: expected a finite number, got nan"),
        (
            '[[compress]]\nmethod = "distill"',
            "my.toml: [compress.distill] needs a student that is not its teacher\n"
            "  hint: let a step before it change the network: prune, factorize, transfer ...",
        ),
        ("[compress]", "my.toml: compress: expected an array of steps, [[compress]], got a section"),
        ("[[compress]]", 'my.toml: [[compress]] step 1 does not say its method\n  hint: method = "prune"'),
        (
            '[[compress]]\nmethod = "prun"',
            "my.toml: [compress.prun] method: expected one of "
            + ", ".join(sorted(repr(s.method) for s in get_args(Step)))
            + ', got the string "prun"\n'
            "  hint: did you mean 'prune'?",
        ),
        (
            PRUNE + '[[compress]]\nmethod = "distill"\nname = "prune"',
            "my.toml: [[compress]] has two steps called 'prune'\n  hint: give one of them another 'name'",
        ),
        (PRUNE + "name = 3", "my.toml: [[compress]] step 1: a name is letters, digits, '_' and '-', got 3"),
        (
            "[targets.arm64.parity]\nmax_step = 3",
            "my.toml: [targets.arm64.parity] unknown key 'max_step'\n  hint: did you mean 'max_steps'?",
        ),
        (
            "[targets.arm64.parity]\nmax_steps = 2.5",
            "my.toml: [targets.arm64.parity] max_steps: expected an integer, got the number 2.5",
        ),
        (
            "[targets.arm64.quantize]\nnodes = 3",
            "my.toml: [targets.arm64.quantize] nodes: expected a section, got the integer 3",
        ),
        (
            "[targets.arm65.parity]\nmax_steps = 2",
            "my.toml: [targets] arm65: there is no such target\n  hint: did you mean 'arm64'?",
        ),
        (
            "[targets.arm64]\npartiy = {}",
            "my.toml: [targets.arm64] unknown key 'partiy'\n  hint: did you mean 'parity'?",
        ),
    ],
)
def test_load_recipe_says_where_and_what_when_it_refuses(extra: str, message: str) -> None:
    assert refusal(written(extra)).startswith(message)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("", "my.toml: missing section [model]"),
        (MINIMAL.partition("[calibration]")[0], "my.toml: missing section [calibration]"),
        (MINIMAL.replace("dataset", "num_samples = 3 #"), "my.toml: [calibration] missing key 'dataset'"),
        (
            MINIMAL.replace("factory", "weights"),
            "my.toml: [model] the model needs either 'factory' or 'path', got neither",
        ),
        (
            MINIMAL.replace('factory = "net.py:make"', 'path = "a.onnx"') + "[train]\n",
            "my.toml: [train] needs a model with layers, got a .onnx file, whose graph is fixed\n"
            "  hint: name a 'factory' that builds the network, or remove [train]",
        ),
        ('name = "../up"' + MINIMAL, "my.toml: name: expected letters, digits, '.', '_' and '-' only"),
        ("name = 3" + MINIMAL, "my.toml: name: expected a string, got the integer 3"),
    ],
)
def test_load_recipe_refuses_when_the_whole_makes_no_sense(base: str, message: str) -> None:
    assert refusal(written(base=base)).startswith(message)


def test_load_recipe_names_the_line_when_it_is_not_toml() -> None:
    message = refusal(written(base="[model]\nfactory = net.py\n"))
    assert message.startswith("my.toml: not valid TOML: ")
    assert "line 2" in message


def test_load_recipe_refuses_when_the_file_is_binary() -> None:
    Path("my.toml").write_bytes(b"\xff\xfe\x00model")
    assert refusal("my.toml").startswith("my.toml: not a text file in UTF-8")


def test_load_recipe_refuses_when_the_file_is_missing() -> None:
    assert refusal("my.toml") == "my.toml: no such file\n  hint: edgeopt init writes a recipe to start from"
    written(name="mine.toml")
    assert refusal("./my.toml") == "./my.toml: no such file\n  hint: did you mean 'mine.toml'?"


def test_load_recipe_refuses_when_the_path_is_a_folder() -> None:
    Path("folder").mkdir()
    assert refusal("folder").startswith("folder: is a folder, expected a TOML file")


def test_load_recipe_names_the_closest_when_no_builtin_has_the_name() -> None:
    assert refusal("mobilenetv2") == "no recipe is called 'mobilenetv2'\n  hint: did you mean 'mobilenet_v2'?"


def test_find_recipe_prefers_the_builtin_when_a_folder_has_its_name() -> None:
    Path("mobilenet_v2").mkdir()
    assert find_recipe("mobilenet_v2").parent.name == "recipes"


# ---------------------------------------------------------------- one target


def test_settings_for_puts_target_values_on_top_when_overridden() -> None:
    own_values = "[targets.arm64.parity]\nmax_steps = 3\n[targets.arm64.quantize.nodes]\na = 'float'\n"
    extra = "[parity]\nmin_cosine = 0.9\n" + own_values
    recipe = load_recipe(written(extra)).recipe
    quantize, parity, own = settings_for(recipe, "arm64")
    assert quantize == QuantizeSettings(nodes={"a": "float"})
    assert parity == ParityLimits(max_steps=3, min_cosine=0.9)
    assert own.parity == {"max_steps": 3}


def test_settings_for_returns_the_common_values_when_the_target_says_nothing() -> None:
    recipe = load_recipe(written("[parity]\nmax_steps = 1\n")).recipe
    assert settings_for(recipe, "x86") == (QuantizeSettings(), ParityLimits(max_steps=1), TargetOverrides())


# ---------------------------------------------------------------- the reader below


def test_decoder_raises_the_class_it_was_given_when_another_file_uses_it() -> None:
    with pytest.raises(TargetError, match=r"target\.toml: \[x\] missing key 'shape'"):
        Decoder("target.toml", Path(), TargetError).settings(InputSettings, {}, ("x",))


def test_decoder_counts_items_when_the_length_is_fixed() -> None:
    decoder = Decoder("a.toml", Path())
    assert decoder.value(tuple[int, str], [1, "a"], ("pair",)) == (1, "a")
    with pytest.raises(EdgeoptError, match="pair: expected 2 items, got 1"):
        decoder.value(tuple[int, str], [1], ("pair",))


def test_decoder_takes_true_for_no_number_when_a_choice_is_one() -> None:
    decoder = Decoder("a.toml", Path())
    assert decoder.value(Literal[1, 2], 1, ("n",)) == 1
    with pytest.raises(EdgeoptError, match="n: expected one of 1, 2, got the boolean true"):
        decoder.value(Literal[1, 2], True, ("n",))


def test_read_toml_says_why_when_the_file_cannot_be_read() -> None:
    with pytest.raises(RecipeError, match=r"gone\.toml: cannot be read: No such file"):
        read_toml(Path("gone.toml"), source="gone.toml")
