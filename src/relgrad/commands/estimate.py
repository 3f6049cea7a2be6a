"""What `relgrad run RECIPE --dry-run` shows: the resolved recipe, what would happen, and what it would take."""

from __future__ import annotations

from relgrad.commands.printing import print_json
from relgrad.runs.estimate import as_record, forecast, in_lines, require_price
from relgrad.runs.plan import plan
from relgrad.runs.recipe import Recipe
from relgrad.runs.yaml_text import write_yaml


def explain(
    recipe: Recipe,
    fresh: bool,
    redo: str | None,
    accept_changes: bool,
    *,
    measure: bool = False,
    price: float | None = None,
    as_json: bool = False,
) -> None:
    """Print it; what is no setting of a recipe stands behind `#`. Raises RelgradError for what the run would refuse."""
    require_price(price)
    planned = plan(recipe, fresh, redo, accept_changes)
    if as_json:
        stages = [as_record(stage, price) for stage in forecast(recipe, measure)]
        print_json({"name": recipe.name, "stages": stages})
        return
    for line, stage in zip(planned, recipe.stages, strict=True):
        print(f"# {line}")
        print(write_yaml(stage.used))
    forecasts = forecast(recipe, measure)
    for line in (line for stage in forecasts for line in in_lines(stage, price)):
        print(f"# {line}")
    hours = [stage.hours for stage in forecasts]
    known_hours = [number for number in hours if number is not None]
    if len(forecasts) > 1 and known_hours:
        missing = (
            ""
            if len(known_hours) == len(hours)
            else f", without {len(hours) - len(known_hours)} of {len(hours)} stages"
        )
        cost = "" if price is None else f", {sum(known_hours) * price:,.2f} at {price:g} an hour"
        print(f"# all together: {sum(known_hours):.2g} hours{cost}{missing}")
