"""The command line answers at once: nothing heavy is imported until it is used.

Times are of the processor, not of the clock, so that a busy machine does not count; the least of several tries.
"""

import subprocess
import sys

import pytest


def best_of(tries: int, program: str) -> float:
    """Seconds that ``program`` prints, at best."""
    ran = (subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(tries))
    return min(float(one.stdout.strip().split("\n")[-1]) for one in ran)


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["generate", "--help"]])
def test_help_and_list_answer_in_half_a_second(arguments: list[str]) -> None:
    program = (
        "import resource, subprocess, sys;"
        f"subprocess.run([sys.executable, '-m', 'diffkit.cli', *{arguments}], stdout=subprocess.DEVNULL, check=True);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    assert best_of(3, program) < 0.5


def test_importing_diffkit_costs_little_beside_torch() -> None:
    program = "import torch, time; began = time.process_time(); import diffkit; print(time.process_time() - began)"
    assert best_of(3, program) < 0.15


def test_listing_imports_neither_torch_nor_an_adapter() -> None:
    program = (
        "import sys; from diffkit.cli import main; main(['list']);"
        "print([m for m in ('torch', 'lightning', 'hydra', 'rdkit', 'diffkit_molecule') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().split("\n")[-1] == "[]"
