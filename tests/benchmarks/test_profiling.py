"""Seconds of stages, and operations and bytes, are counted once and where they belong."""

import torch

from benchmarks.profiling import roofline, stages


def test_a_stage_within_another_counts_for_itself_alone(clock):
    class Program:
        def outer(self):
            clock(2)
            self.inner()
            clock(1)

        def inner(self):
            clock(5)

        @classmethod
        def made(cls):
            clock(7)
            return cls()

    found = stages.Stages()
    for name in ("outer", "inner", "made"):
        found.wrap(Program, name, name)
    program = Program.made()
    clock(100)  # between stages
    program.outer()
    assert found.spent == {"made": (7, 14), "outer": (3, 6), "inner": (5, 10)}
    assert "| inner | 2.500 | 5.000 | 33 % |" in stages.text(found.spent, runs=2)


def test_operations_and_bytes_of_a_product():
    a, b = torch.rand(8, 16), torch.rand(16, 4)
    flops, moved = roofline.count(lambda: (a @ b).t())
    assert flops == 2 * 8 * 16 * 4
    assert moved == 4 * (8 * 16 + 16 * 4 + 8 * 4)  # the transposition is a view
