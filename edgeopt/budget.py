"""The memory that a recipe gives a microcontroller's model, kept or not."""

from __future__ import annotations

from edgeopt.artifacts import Memory
from edgeopt.errors import BudgetError
from edgeopt.settings import TargetOverrides


def keep_budget(needed: Memory, given: TargetOverrides, target: str) -> None:
    """Refuse a model that takes more than the recipe gives it.

    Raises:
        BudgetError: naming what is too large, and by how much.
    """
    over = [
        f"{bytes_needed:,} bytes of {kind}, max_{kind}_bytes is {budget:,}"
        for kind, bytes_needed, budget in (
            ("ram", needed.ram_bytes, given.max_ram_bytes),
            ("flash", needed.flash_bytes, given.max_flash_bytes),
        )
        if budget is not None and bytes_needed > budget
    ]
    if over:
        raise BudgetError(
            f"{target} needs {' and '.join(over)}",
            hint="prune more (pruning_ratio in [[compress]]), or take smaller inputs, which decide about RAM; "
            f"the budget is [targets.{target}] in the recipe",
        )
