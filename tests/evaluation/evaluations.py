"""Small evaluations: rows made by hand, answered by a script, run and scored by the real runner."""

from evaluation.catalogue import benchmark, module
from evaluation.judge_verdicts import Verdicts
from evaluation.results import collect, facts_of
from evaluation.rows import Rows
from evaluation.runner import EvaluationOptions, Process, run_benchmark, score_benchmark


class ScriptedModel:
    """Answers by what it was told to say to each text, and `yes` to all else."""

    def __init__(self, name, answers):
        self.name, self.answers = name, answers

    def image_mode(self, benchmark, mode):
        return benchmark.images if mode == "official" else mode

    def facts(self):
        return {"model": self.name, "weights": "0123", "dtype": "float32"}

    def answer(self, questions):
        return [self.answers.get(question.text, "yes") for question in questions]


def run(out, name, rows, responses, model="tiny", limit=None):
    """Run and score a benchmark; gives what `collect` takes."""
    texts = [module(name).prompt(row) for row in rows]
    scripted = ScriptedModel(model, dict(zip(texts, responses, strict=True)))
    table = Rows([{**row, "has_image": False} for row in rows], [None] * len(rows))
    own = benchmark(name)
    run_benchmark(scripted, module(name), own, table, out, EvaluationOptions(limit=limit), Process())
    result = score_benchmark(module(name), own, table, out)
    return own, result, facts_of(table, out, own)


def results_of(out, *runs):
    """Run several benchmarks, each given as name, rows and responses, and collect them."""
    return collect(out, [run(out, *one) for one in runs])


def judged(out, ratings, model="tiny", judge="gpt-4-0314"):
    """LLaVA-Bench with ratings, `None` for what is not judged."""
    own, _, facts = run(out, "llava_bench", llava_rows(len(ratings)), ["It is."] * len(ratings), model)
    fields = {place: {"tuple": pair} for place, pair in enumerate(ratings) if pair is not None}
    verdicts = Verdicts("llava_bench", len(ratings), len(fields), 0, {judge: len(fields)}, {}, None, fields)
    result = verdicts.score(module("llava_bench"), facts["items"])
    return own, result, {**facts, "items": verdicts.apply(facts["items"])}


def llava_rows(count):
    """Rows of LLaVA-Bench."""
    kinds = ("conv", "detail", "complex")
    return [
        {
            "question_id": one,
            "question": f"What is {one}?",
            "gpt_answer": "A bee.",
            "caption": "",
            "category": kinds[one % 3],
        }
        for one in range(count)
    ]


def mme_rows(images, task="existence"):
    """Two rows for each image of a task, the first of which wants a yes."""
    return [
        {
            "question_id": f"{task}/{image}.jpg",
            "category": task,
            "question": f"Is {task} {image} {answer}?",
            "answer": answer,
        }
        for image in range(images)
        for answer in ("Yes", "No")
    ]


def pope_rows(count, category="random"):
    """Rows of a category of POPE, which want yes and no in turn."""
    return [
        {
            "question_id": one,
            "category": category,
            "question": f"Is {category} {one} there?",
            "answer": ("yes", "no")[one % 2],
        }
        for one in range(count)
    ]


def qbench_rows(count):
    """Rows of Q-Bench whose right option is A."""
    options = {"option0": "Sharp", "option1": "Blurred", "option2": "N/A", "option3": "N/A"}
    groups = {"question_type": 0, "question_concern": 1}
    return [
        {"id": str(one), "question": f"How is {one}?", **options, **groups, "correct_choice": "A"}
        for one in range(count)
    ]


def vqa_rows(count):
    """Rows of VQAv2 that three of ten people answer with `bee`, and seven with `wasp`."""
    answers = [{"answer": "bee" if one < 3 else "wasp", "answer_id": one} for one in range(10)]
    kinds = {"question_type": "what is", "answer_type": "other", "answers": answers}
    return [{"question_id": one, "image_id": one, "question": f"What is {one}?", **kinds} for one in range(count)]


def mmbench_rows(groups):
    """Rows of MMBench: two rotations of each question, whose answer is `cat`."""
    return [
        {"index": group + turn * 1_000_000, "question": f"Which is {group}, {turn}?", **options, "category": "animals"}
        for group in range(groups)
        for turn, options in enumerate(
            ({"A": "cat", "B": "dog", "answer": "A"}, {"A": "dog", "B": "cat", "answer": "B"})
        )
    ]


def whole(results):
    """The same results as if each benchmark were its whole split, for what a toy run is refused."""
    entries = {
        name: {**entry, "limited": False, "questions": entry["of"]} for name, entry in results["benchmarks"].items()
    }
    return {**results, "benchmarks": entries}


def rows_of_each():
    """Rows of each benchmark without a judge, and answers of which some are right."""
    choices = {f"choice_{letter}": word for letter, word in zip("abcd", ("cat", "dog", "bee", "ant"), strict=True)}
    kinds = ("image", 1), ("image", 2), ("video", 10), ("image", 1)
    seed = [
        {
            "question_id": one,
            "question": f"{one}?",
            **choices,
            "answer": "A",
            "data_type": kind,
            "question_type_id": number,
        }
        for one, (kind, number) in enumerate(kinds)
    ]
    science = [{"question": f"{one}?", "choices": ["cat", "dog"], "answer": one % 2, "hint": ""} for one in range(4)]
    texts = ["bee"] * 3 + ["wasp"] * 7
    vizwiz = [
        {"question_id": f"{one}", "question": f"{one}?", "answers": texts, "category": "other"} for one in range(4)
    ]
    text = [{"question_id": one, "image_id": f"{one}", "question": f"{one}?", "answers": texts} for one in range(4)]
    types = {"structural": "query", "semantic": "rel", "detailed": "relO"}
    gqa = [
        {"id": f"{one}", "question": f"{one}?", "answer": "bee", "isBalanced": True, "types": types}
        for one in range(4)
    ]
    answers = ["bee", "wasp", "fly", "bee"]
    return {
        "mme": (mme_rows(2), ["yes", "no", "yes", "yes"]),
        "mmbench": (mmbench_rows(2), ["A", "B", "A", "A"]),
        "mmbench_cn": (mmbench_rows(2), ["A", "B", "A", "A"]),
        "seed": (seed, ["A", "B", "A", "A"]),
        "qbench": (qbench_rows(4), ["A", "B", "A", "A"]),
        "scienceqa": (science, ["A", "B", "B", "A"]),
        "vqav2": (vqa_rows(4), answers),
        "vizwiz": (vizwiz, answers),
        "gqa": (gqa, answers),
        "textvqa": (text, answers),
        "pope": (pope_rows(4), ["yes", "no", "yes", "yes"]),
    }
