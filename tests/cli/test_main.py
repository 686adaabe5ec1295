"""The frame of the command line, run as a person or a script runs it."""

import json
import re
import subprocess
import sys

import pytest
import typer

from umbel.cli import commands, main
from umbel.cli.commands import COMMANDS, Entry
from umbel.core.errors import Conflict, GateFailed, NotFound, UmbelError


def umbel(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def boom(monkeypatch):
    """A command `boom` that fails as a test wants it to."""
    app = typer.Typer()
    failure: list[BaseException] = []

    @app.command()
    def boom(as_json: bool = typer.Option(False, "--json")) -> None:
        """Fail."""
        raise failure[0]

    module = type(sys)("umbel.cli.boom")
    module.__spec__ = commands.find_spec("umbel.cli.pull")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umbel.cli.boom", module)
    monkeypatch.setattr(commands, "COMMANDS", (*COMMANDS, Entry("boom", "boom", "Fail.", commands.HOUSE)))
    return failure


def test_help_imports_nothing_heavy():
    script = "import sys; from umbel.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"torch", "transformers", "sqlalchemy", "fastapi", "numpy", "pydantic", "rich", "httpx2"}
    assert "umbel.cli.pull" not in done.stderr.split()
    assert "pull" in done.stdout


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "umbel.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("umbel ")


def test_every_command_that_exists_loads_and_has_help_without_typers_own_options(capsys):
    for entry in commands.LazyGroup(name="umbel").entries.values():
        code, out, _ = umbel(capsys, entry.name, "--help")
        assert code == 0
        assert f"umbel {entry.name}" in out
        assert "--install-completion" not in out


def test_help_fits_a_terminal_and_has_no_boxes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for words in (["--help"], ["pull", "backbone", "--help"], ["datasets", "--help"]):
        _, out, _ = umbel(capsys, *words)
        assert max(len(line) for line in out.splitlines()) <= 100
        assert "─" not in out


def every_command(entry, words=()):
    """Of the words after ``umbel``, those of every command and subcommand."""
    words = (*words, entry.name)
    yield words
    for child in getattr(entry.load() if isinstance(entry, Entry) else entry, "commands", {}).values():
        yield from every_command(child, words)


def test_help_of_every_command_fits_80_columns_and_no_sentence_is_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    seen = [words for entry in commands.LazyGroup(name="umbel").entries.values() for words in every_command(entry)]
    assert ("adapters", "import") in seen
    for words in [(), *seen]:
        _, out, _ = umbel(capsys, *words, "--help")
        lines = out.splitlines()
        assert max(map(len, lines)) <= 80, (words, max(lines, key=len))
        assert not [line for line in lines if re.search(r"[a-z]\.\.\.$", line)], words


def test_a_long_example_is_folded_where_a_shell_lets_it():
    from umbel.cli.console import examples

    told = examples("umbel do --one " + "x" * 40 + " --two " + "y" * 30 + "   (a remark)", "umbel do   (short)")
    one, two, remark, short = told.splitlines()[2:]
    assert one.endswith(" \\")
    assert two.strip() == "--two " + "y" * 30
    assert (remark.strip(), short) == ("(a remark)", "  umbel do   (short)")


def test_examples_stand_as_they_are_typed(capsys):
    _, out, _ = umbel(capsys, "pull", "backbone", "--help")
    assert "\n  umbel pull backbone hf:meta-llama/Llama-3.2-1B@main --name llama\n" in out


def test_examples_come_before_options(capsys):
    _, out, _ = umbel(capsys, "adapters", "list", "--help")
    assert out.index("Examples:") < out.index("Options:")


def test_a_command_whose_module_is_missing_is_neither_shown_nor_known(capsys, monkeypatch):
    monkeypatch.setattr(commands, "COMMANDS", (*COMMANDS, Entry("later", "no_such_module", "Later.", commands.HOUSE)))
    assert "later" not in umbel(capsys, "--help")[1]
    assert umbel(capsys, "later")[0] == 2


def test_no_two_commands_share_a_name():
    assert len({entry.name for entry in COMMANDS}) == len(COMMANDS)


@pytest.mark.parametrize("words", [[], ["pull"]])
def test_a_group_without_a_command_shows_its_help(capsys, words):
    code, _, err = umbel(capsys, *words)
    assert code == 2
    assert err.startswith("Usage: umbel")


def test_a_typing_error_is_answered_with_what_was_meant(capsys):
    code, out, err = umbel(capsys, "backbnes")
    assert (code, out) == (2, "")
    assert err == "error: No such command 'backbnes'. Did you mean 'backbones'?\n  fix: umbel --help\n"


def test_a_wrong_option_points_at_the_help_of_its_own_command(capsys):
    code, _, err = umbel(capsys, "pull", "dataset", "--nmae", "x")
    assert code == 2
    assert "fix: umbel pull dataset --help" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [(UmbelError("x"), 1), (NotFound("x"), 3), (Conflict("x"), 4), (GateFailed("x"), 5)],
)
def test_an_error_ends_with_its_own_exit_code_and_the_fix(capsys, boom, error, code):
    error.hint = "do this"
    boom.append(error)
    assert umbel(capsys, "boom") == (code, "", "error: x\n  fix: do this\n")


def test_json_was_asked_for_so_errors_are_json_too(capsys, boom):
    boom.append(NotFound("no such thing", code="thing_not_found", hint="make one"))
    code, out, err = umbel(capsys, "boom", "--json")
    assert (code, out) == (3, "")
    assert json.loads(err)["error"] == {
        "message": "no such thing",
        "type": "not_found_error",
        "param": None,
        "code": "thing_not_found",
        "hint": "make one",
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_ctrl_c_ends_with_130_and_no_traceback(capsys, boom, error):
    boom.append(error)
    code, _, err = umbel(capsys, "boom")
    assert code == 130
    assert "Traceback" not in err


def test_a_fault_of_ours_is_one_line_and_how_to_see_more(capsys, boom):
    boom.append(ZeroDivisionError("division by zero\nmore"))
    code, _, err = umbel(capsys, "boom")
    assert code == 1
    assert err.splitlines()[0] == "error: ZeroDivisionError: division by zero"
    assert "UMBEL_DEBUG=1" in err


def test_debugging_shows_the_traceback_itself(capsys, boom, monkeypatch):
    monkeypatch.setenv("UMBEL_DEBUG", "1")
    boom.append(ZeroDivisionError("x"))
    with pytest.raises(ZeroDivisionError):
        main.main(["boom"])


def test_a_wrong_config_is_the_users_error_not_a_fault(capsys, boom):
    from umbel.core.contract import Contract

    with pytest.raises(ValueError) as refused:
        Contract.model_validate({"output_head": "generate", "template": "no slot"})
    boom.append(refused.value)
    code, _, err = umbel(capsys, "boom")
    assert code == 2
    assert "exactly one {text}" in err


# The commands of this folder that need no network


def test_an_empty_home_says_which_command_fills_it(capsys, home):
    code, out, err = umbel(capsys, "backbones", "list")
    assert (code, out) == (0, "")
    assert "umbel pull backbone smollm2-135m-instruct" in err
    assert umbel(capsys, "datasets", "list", "--json")[:2] == (0, "[]\n")


def test_a_pulled_folder_is_listed_shown_and_removed(capsys, home, tmp_path):
    from umbel.backbone.tiny import tiny_backbone

    source = tiny_backbone(tmp_path / "tiny")
    code, out, err = umbel(capsys, "pull", "backbone", str(source))
    assert (code, out) == (0, "")  # results only on stdout, and a pull has none
    assert "tiny:" in err
    header, row = umbel(capsys, "backbones", "list")[1].splitlines()
    assert header.split("\t") == ["NAME", "SIZE", "LICENCE", "SOURCE", "FORM"]
    assert row.split("\t")[0::3] == ["tiny", f"folder:{source}"]
    shown = json.loads(umbel(capsys, "backbones", "show", "tiny", "--json")[1])
    assert shown["name"] == "tiny"
    assert shown["source"]["source"] == f"folder:{source}"
    assert umbel(capsys, "backbones", "rm", "tiny")[0] == 0
    assert umbel(capsys, "backbones", "show", "tiny")[0] == 3


def test_a_pulled_backbone_is_known_to_the_registry_until_it_is_removed(capsys, home, tmp_path):
    from umbel.backbone.fingerprint import identity
    from umbel.backbone.tiny import tiny_backbone
    from umbel.registry.registry import Registry

    same = identity(tiny_backbone(tmp_path / "tiny"))
    umbel(capsys, "pull", "backbone", str(tmp_path / "tiny"))
    with Registry.open() as registry:
        known = registry.backbones.get("tiny")
    assert (known.fingerprint, known.tokenizer_sha, known.chat_template_sha) == (
        same.fingerprint,
        same.tokenizer_sha,
        same.chat_template_sha,
    )
    code, _, err = umbel(capsys, "pull", "backbone", str(tmp_path / "tiny"), "--name", "twin")
    assert code == 4
    assert "'tiny'" in err  # the same weights under two names would split their adapters
    assert not (home / "backbones/twin").exists()
    umbel(capsys, "backbones", "rm", "tiny")
    with Registry.open() as registry:
        assert registry.backbones.list() == ()


def test_pulling_again_mends_a_registry_that_was_lost(capsys, home, tmp_path):
    from umbel.backbone.tiny import tiny_backbone
    from umbel.registry.registry import Registry

    source = str(tiny_backbone(tmp_path / "tiny"))
    umbel(capsys, "pull", "backbone", source)
    for file in home.glob("registry.db*"):
        file.unlink()
    assert umbel(capsys, "pull", "backbone", source)[0] == 0
    with Registry.open() as registry:
        assert [backbone.name for backbone in registry.backbones.list()] == ["tiny"]


def test_a_backbone_that_adapters_need_is_removed_only_by_force(capsys, home, tmp_path):
    from umbel.backbone.tiny import tiny_backbone
    from umbel.core.contract import Contract, OutputHead
    from umbel.core.manifest import WEIGHTS_FILE
    from umbel.registry.registry import Registry

    umbel(capsys, "pull", "backbone", str(tiny_backbone(tmp_path / "tiny")))
    with Registry.open() as registry:
        registry.publish(
            {WEIGHTS_FILE: b"weights"},
            name="mood",
            method="none",
            config={},
            contract=Contract(output_head=OutputHead.GENERATE),
            backbone=registry.backbones.get("tiny").fingerprint,
        )
    code, _, err = umbel(capsys, "backbones", "rm", "tiny")
    assert code == 4
    assert "--force" in err
    assert (home / "backbones/tiny").is_dir()
    assert umbel(capsys, "backbones", "rm", "tiny", "--force")[0] == 0
    assert not (home / "backbones/tiny").exists()
    assert umbel(capsys, "pull", "backbone", str(tmp_path / "tiny"))[0] == 0


def test_a_name_that_an_adapter_has_is_not_given_to_a_backbone(capsys, home, tmp_path):
    from umbel.backbone.tiny import tiny_backbone
    from umbel.core.contract import Contract, OutputHead
    from umbel.core.digests import digest_bytes
    from umbel.core.manifest import WEIGHTS_FILE
    from umbel.registry.registry import Registry

    with Registry.open() as registry:
        registry.publish(
            {WEIGHTS_FILE: b"weights"},
            name="mood",
            method="none",
            config={},
            contract=Contract(output_head=OutputHead.GENERATE),
            backbone=digest_bytes(b"another"),
        )
    assert umbel(capsys, "pull", "backbone", str(tiny_backbone(tmp_path / "tiny")), "--name", "mood")[0] == 4
    assert not (home / "backbones/mood").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["adapters", "list"],
        ["backbones", "list"],
        ["pull", "backbone", "x"],
        ["pull", "dataset", "pronounce"],
        ["serve"],
    ],
    ids=" ".join,
)
def test_a_home_that_is_a_file_is_told_with_the_way_out(capsys, monkeypatch, tmp_path, words):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "file"))
    code, _, err = umbel(capsys, *words)
    assert (code, f"{tmp_path}/file is no folder" in err) == (2, True), err
    assert "export UMBEL_HOME=a folder of yours" in err


def test_doctor_looks_on_where_the_home_is_a_file(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "file"))
    code, out, _ = umbel(capsys, "doctor", "--json")
    assert (code, "is no folder" in out, len(json.loads(out)) > 0) == (1, True, True)


@pytest.mark.parametrize("words", [["adapters", "list"], ["pull", "dataset", "pronounce"]], ids=" ".join)
def test_a_home_that_cannot_be_made_is_told_with_the_way_out(capsys, monkeypatch, words):
    monkeypatch.setenv("UMBEL_HOME", "/proc/x")
    code, _, err = umbel(capsys, *words)
    assert (code, "/proc/x cannot be made" in err, "export UMBEL_HOME=" in err) == (2, True, True), err


@pytest.mark.parametrize("variable", ["UMBEL_STORE_URL", "UMBEL_DATABASE_URL"])
def test_a_store_or_database_where_no_folder_can_be_is_told_with_its_variable(capsys, monkeypatch, home, variable):
    (home / "file").parent.mkdir(exist_ok=True)
    (home / "file").write_text("")
    monkeypatch.setenv(variable, str(home / "file") if "STORE" in variable else f"sqlite:///{home}/file/registry.db")
    code, _, err = umbel(capsys, "adapters", "list")
    assert (code, "is no folder" in err, f"export {variable}=" in err) == (2, True, True), err


def test_quiet_is_quiet(capsys, home, tmp_path):
    from umbel.backbone.tiny import tiny_backbone

    assert umbel(capsys, "pull", "backbone", str(tiny_backbone(tmp_path / "tiny")), "--quiet") == (0, "", "")


def test_what_an_extra_would_bring_is_told_with_the_command_that_brings_it(boom, capsys):
    boom.append(ModuleNotFoundError("No module named 'fastapi.routing'", name="fastapi.routing"))
    code, _, err = umbel(capsys, "boom")
    assert code == 1
    assert "this needs fastapi" in err
    assert "pip install 'umbel[serve]'" in err
    boom[:] = [ModuleNotFoundError("No module named 'nowhere'", name="nowhere")]
    assert "a fault of umbel" in umbel(capsys, "boom")[2]


@pytest.mark.parametrize(
    "words",
    [["estimate", "--parameters", "1e9"], ["serve", "--port", "0"], ["train", "--name", "a", "--data", "x.csv"]],
)
def test_commands_that_need_torch_say_so_where_it_is_not_installed(words, home):
    script = f"import sys; sys.modules['torch'] = None; from umbel.cli.main import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "fault of umbel" not in done.stderr
    assert "pip install 'umbel[serve,train]'" in done.stderr, done.stderr


def test_doctor_without_torch_breaks_no_check(home):
    script = "import sys; sys.modules['torch'] = None; from umbel.cli.main import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "broke" not in done.stdout + done.stderr, done.stdout
