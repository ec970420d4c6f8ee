"""From a YAML file to a tariff, or to everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec.loading import in_order, python_value, read_mapping, read_text, with_new
from orchestrator.spec.problems import problems_of
from orchestrator.spec.shape import shape_of
from orchestrator.spec.tariff import TariffSpec


def load_tariff(path: Path) -> TariffSpec:
    """Read and check a tariff's file. Raises SpecError with every problem found."""
    return parse_tariff(read_text(path), str(path))


def parse_tariff(text: str, file_name: str = "tariff") -> TariffSpec:
    """The tariff that a YAML text describes. Raises SpecError with every problem found, in order."""
    root, problems = read_mapping(text, file_name)
    shape = shape_of(TariffSpec)
    try:
        tariff = TariffSpec.model_validate(python_value(root, shape))
    except ValidationError as error:
        problems = with_new(problems, problems_of(error, root, shape))
    if problems:
        raise SpecError(in_order(problems, file_name))
    return tariff
