"""Names of the benchmarks, in the order of the paper's Table 3, and what is behind each."""

import inspect

import pytest

from evaluation.base import OFFICIAL, Benchmark
from evaluation.catalogue import NAMES, benchmark, benchmarks_of, module


TABLE_3 = [
    "LLaVA^W",
    "MME^P, MME^C",
    "MMB",
    "MMB^CN",
    "SEED^I",
    "MM-Vet",
    "QBench",
    "SQA^I",
    "VQAv2",
    "VizWiz",
]


def test_the_order_is_that_of_table_3():
    columns = [benchmark(name).column for name in NAMES]
    assert columns[: len(TABLE_3)] == TABLE_3
    assert NAMES[len(TABLE_3) :] == ("gqa", "textvqa", "pope")


@pytest.mark.parametrize("name", NAMES)
def test_each_module_has_what_commands_call(name):
    described = benchmark(name)
    assert isinstance(described, Benchmark) and described.name == name
    assert described.rules[0] == OFFICIAL and "image" in described.fields and described.questions > 0
    for function in ("prompt", "parse", "score", "read_items"):
        assert callable(getattr(module(name), function)), function
    assert list(inspect.signature(module(name).read_items).parameters)[:2] == ["predictions", "references"]
    assert list(inspect.signature(module(name).score).parameters)[:2] == ["items", "rule"]


def test_an_unknown_name_is_refused_with_the_list_of_all():
    with pytest.raises(ValueError, match=r"no benchmark 'mmmu'.*llava_bench, mme, mmbench, .*pope"):
        benchmark("mmmu")


def test_several_are_in_their_order_and_once():
    chosen = benchmarks_of(["pope", "mme", "pope"])
    assert [described.name for described, _ in chosen] == ["mme", "pope"]
    assert chosen[0][1] is module("mme")


def test_all_are_all():
    assert [described.name for described, _ in benchmarks_of(["all"])] == list(NAMES)


@pytest.mark.parametrize("names", [[], ["all", "mmmu"]])
def test_no_or_unknown_names_among_several_are_refused(names):
    with pytest.raises(ValueError, match="at least one benchmark|no benchmark 'mmmu'"):
        benchmarks_of(names)
