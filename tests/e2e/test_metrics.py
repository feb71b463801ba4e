"""What Prometheus makes of /metrics: read with its own parser, before the first request and after some."""

import re

import httpx
import pytest
from harness.client import TIMEOUT_S, body, generate
from harness.launcher import ROOT
from harness.models import integer_answer
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

NUM_TOKENS = 12
PROMPTS = ["one", "two of them", "three"]
# What is not zero when nothing has happened yet: sizes, and the engine's start.
SIZES = {"penstock_kv_blocks_total", "tgi_batch_max_total_tokens", "penstock_engines_ready"}
HISTOGRAMS = [
    "tgi_request_duration",
    "tgi_request_validation_duration",
    "tgi_request_queue_duration",
    "tgi_request_inference_duration",
    "tgi_request_mean_time_per_token_duration",
    "tgi_request_generated_tokens",
    "tgi_request_input_length",
    "tgi_request_max_new_tokens",
    "tgi_batch_next_size",
    "penstock_time_to_first_token_duration",
    "penstock_inter_token_duration",
]


def documented() -> set[str]:
    """TGI's families that docs/from-tgi.md does not say are left out."""
    rows = (ROOT / "docs" / "from-tgi.md").read_text().partition("## Metrics")[2].splitlines()
    cells = [row.split("|") for row in rows if row.startswith("| `tgi_")]
    return {name for row in cells if row[2].strip() != "left out" for name in re.findall(r"tgi_\w+", row[1])}


def scrape(url: str) -> dict[str, Metric]:
    """Each family by its name; the parser takes the `_total` of a counter off."""
    families = list(text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).text))
    names = [family.name for family in families]
    assert len(set(names)) == len(names), "a family is there twice"
    assert all(family.type in ("counter", "gauge", "histogram") for family in families)
    return dict(zip(names, families, strict=True))


def value(families: dict[str, Metric], family: str, sample: str, **labels: str) -> float:
    """The one sample of this name and these labels."""
    [found] = [s.value for s in families[family].samples if s.name == sample and labels.items() <= s.labels.items()]
    return found


def check_histogram(family: Metric) -> None:
    """Buckets never fall, and the last one holds everything."""
    series: dict[tuple[tuple[str, str], ...], list[float]] = {}
    counts = {}
    for sample in family.samples:
        labels = tuple(sorted((name, text) for name, text in sample.labels.items() if name != "le"))
        if sample.name.endswith("_bucket"):
            series.setdefault(labels, []).append(sample.value)
        elif sample.name.endswith("_count"):
            counts[labels] = sample.value
    assert series.keys() == counts.keys(), family.name
    for labels, buckets in series.items():
        assert buckets == sorted(buckets), family.name
        assert buckets[-1] == counts[labels], family.name


@pytest.fixture
def url(launch, endless_folder):
    launcher = launch("--model-id", endless_folder)
    yield launcher.wait_until_ready()
    assert launcher.stop() == 0


def test_metrics_are_there_at_zero_and_then_count(url):
    before = scrape(url)
    assert set(HISTOGRAMS) <= before.keys()
    assert len(documented()) == 23
    assert documented() <= before.keys()
    for name, family in before.items():
        if family.type == "histogram":
            check_histogram(family)
        assert name in SIZES or not any(sample.value for sample in family.samples), name
    for prompt in PROMPTS:
        assert generate(url, body(prompt, NUM_TOKENS)).ids == integer_answer(prompt, NUM_TOKENS, eos=None)
    after = scrape(url)
    assert after.keys() == before.keys()
    for family in after.values():
        if family.type == "histogram":
            check_histogram(family)
    num = len(PROMPTS)
    expected = {
        ("tgi_request_count", "tgi_request_count_total"): num,
        ("tgi_request_success", "tgi_request_success_total"): num,
        ("tgi_request_duration", "tgi_request_duration_count"): num,
        ("tgi_request_generated_tokens", "tgi_request_generated_tokens_sum"): num * NUM_TOKENS,
        ("penstock_time_to_first_token_duration", "penstock_time_to_first_token_duration_count"): num,
        ("penstock_inter_token_duration", "penstock_inter_token_duration_count"): num * (NUM_TOKENS - 1),
    }
    assert {key: value(after, *key) for key in expected} == expected
    for name in ("penstock_time_to_first_token_duration", "penstock_inter_token_duration"):
        assert value(after, name, f"{name}_sum") > 0
    assert value(after, "tgi_request_failure", "tgi_request_failure_total", err="validation") == 0
