"""
VQA v2 predictions scored by `evaluation.vqav2` and by the official algorithm written plainly.

100,000 questions are drawn with ten references each. Answers repeat themselves as those of people do (a Zipf law over
4,000 texts, a quarter of the questions with ten equal references), some have articles, capitals and punctuation. The
plain side walks over questions, references and marks as the official code does (GT-Vision-Lab/VQA@a013f004), except
that it makes new references where that code overwrites them, so that it can be timed again. Both sides must give the
same figures, question by question. What ours remembers of texts is forgotten before each round.

- `official`: time of the plain algorithm over ours.
- `all_distinct` in the details: the same where no two questions share a text, so that remembering helps little.

```sh
python benchmarks/scoring.py
```
"""

import random
import re
import sys
from itertools import accumulate
from typing import Any

from common import best_of, finish


TARGETS = {"official": 3}
QUESTIONS, DISTINCT_QUESTIONS, ROUNDS, SEED = 100_000, 5_000, 2, 5
VOCABULARY, REFERENCES, UNANIMOUS, MESSY = 4000, 10, 0.25, 0.2
TYPES = (("what is the", "other"), ("is the", "yes/no"), ("how many", "number"), ("what color is the", "other"))
STEMS = "red/two/dog/tennis racket/yes/no/st louis/oclock/dont know/t shirt/1,000/3.5".split("/")
DISGUISES = ("the {}", "{}.", "A {}", "{}!", "{}, {}", "{}/{}", '"{}"', " {}\n", "{}-{}")
Question = dict[str, Any]


def draw(count: int, distinct: bool) -> list[Question]:
    """Questions with references and a response, as `evaluation.vqav2` reads them."""
    source = random.Random(SEED)
    words = [
        f"{STEMS[number % len(STEMS)]} {number}" if number >= len(STEMS) else STEMS[number]
        for number in range(VOCABULARY)
    ]
    weights = list(accumulate(1 / (rank + 1) for rank in range(VOCABULARY)))
    used = iter(range(10**9))

    def text(word: str) -> str:
        told = source.choice(DISGUISES).format(word, word) if source.random() < MESSY else word
        return f"{told} {next(used)}x" if distinct else told

    questions = []
    for number in range(count):
        known = source.choices(words, cum_weights=weights, k=4)
        answers = [text(word) for word in source.choices(known, (6, 2, 1, 1), k=REFERENCES)]
        if source.random() < UNANIMOUS:
            answers = answers[:1] * REFERENCES
        question_type, answer_type = TYPES[number % len(TYPES)]
        references = [
            {"answer": answer, "answer_confidence": "yes", "answer_id": place}
            for place, answer in enumerate(answers, 1)
        ]
        named = {"question_id": number, "question_type": question_type, "answer_type": answer_type}
        questions.append(named | {"answers": references, "response": source.choice([text(known[0]), answers[0]])})
    return questions


class Plain:
    """The official algorithm, step by step."""

    MARKS = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")

    def __init__(self) -> None:
        from evaluation.vqa_contractions import CONTRACTIONS

        self.contractions = dict(CONTRACTIONS)
        self.numbers = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
        self.numbers |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
        self.articles = ["a", "an", "the"]
        self.full_stop = re.compile(r"(?!<=\d)(\.)(?!\d)")
        self.comma = re.compile(r"(\d)(,)(\d)")

    def punctuation(self, text: str) -> str:
        """Take out marks, one after the other, then full stops."""
        result = text
        for mark in self.MARKS:
            if (mark + " " in text or " " + mark in text) or re.search(self.comma, text) is not None:
                result = result.replace(mark, "")
            else:
                result = result.replace(mark, " ")
        return self.full_stop.sub("", result, count=int(re.UNICODE))

    def words(self, text: str) -> str:
        """Replace numbers and contractions, drop articles."""
        kept = []
        for word in text.lower().split():
            word = self.numbers.setdefault(word, word)
            if word not in self.articles:
                kept.append(word)
        for place, word in enumerate(kept):
            if word in self.contractions:
                kept[place] = self.contractions[word]
        return " ".join(kept)

    def accuracy(self, question: Question) -> float:
        """Of one question."""
        references = [reference | {"answer": flat(reference["answer"])} for reference in question["answers"]]
        answer = flat(question["response"])
        if len({reference["answer"] for reference in references}) > 1:
            for reference in references:
                reference["answer"] = self.words(self.punctuation(reference["answer"]))
            answer = self.words(self.punctuation(answer))
        shares = []
        for reference in references:
            others = [other for other in references if other != reference]
            agreeing = [other for other in others if other["answer"] == answer]
            shares.append(min(1, float(len(agreeing)) / 3))
        return float(sum(shares)) / len(shares)

    def score(self, questions: list[Question]) -> dict[str, Any]:
        """Figures of all questions."""
        accuracies: list[float] = []
        groups: dict[str, dict[str, list[float]]] = {"question_type": {}, "answer_type": {}}
        for question in questions:
            accuracies.append(self.accuracy(question))
            for field, found in groups.items():
                found.setdefault(question[field], []).append(accuracies[-1])
        by_type = [{name: rounded(values) for name, values in found.items()} for found in groups.values()]
        return {
            "overall": rounded(accuracies),
            "types": by_type,
            "each": [round(100 * value, 2) for value in accuracies],
        }


def flat(text: str) -> str:
    """One line, without spaces at its ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def rounded(values: list[float]) -> float:
    """Percent with two decimals."""
    return round(100 * float(sum(values)) / len(values), 2)


def ours(questions: list[Question]) -> dict[str, Any]:
    """The same figures by our scorer, which begins with an empty memory."""
    from evaluation import vqa_accuracy, vqa_text, vqav2

    for function in (vqa_text.flatten, vqa_text.normalise_vqa_v2, vqa_accuracy.consensus):
        function.cache_clear()
    result = vqav2.score(questions)
    types = [result.breakdown["perQuestionType"], result.breakdown["perAnswerType"]]
    return {"overall": result.headline["overall"], "types": types, "each": result.scores}


def compare(questions: list[Question]) -> dict[str, Any]:
    """Seconds of both sides; nothing is said of them unless the results of the first round are the same."""
    results: dict[str, dict[str, Any]] = {}
    sides = {
        "plain": lambda: results.update(plain=Plain().score(questions)),
        "ours": lambda: results.update(ours=ours(questions)),
    }
    first = best_of(1, **sides)
    if results["plain"] != results["ours"]:
        figures = {name: result["overall"] for name, result in results.items()}
        raise SystemExit(f"Results differ, overall or in a question: {figures}.")
    others = best_of(ROUNDS - 1, **sides)
    seconds = {name: min(first[name], others[name]) for name in sides}
    print(f"{len(questions)} questions: {seconds}", file=sys.stderr, flush=True)
    times: dict[str, Any] = {f"{name}_seconds": round(value, 3) for name, value in seconds.items()}
    texts = {reference["answer"] for question in questions for reference in question["answers"]}
    times |= {"questions": len(questions), "texts": len(texts), "overall": results["ours"]["overall"]}
    return times | {"ratio": round(seconds["plain"] / seconds["ours"], 3)}


def main() -> None:
    """Draw the questions, compare, and report."""
    repeated, distinct = compare(draw(QUESTIONS, False)), compare(draw(DISTINCT_QUESTIONS, True))
    details = {"repeated": repeated, "all_distinct": distinct, "rounds": ROUNDS}
    finish("scoring", {"official": repeated["ratio"]}, TARGETS, details, equal=True)


if __name__ == "__main__":
    main()
