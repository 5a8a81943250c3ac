"""DocVQA, single page: a scanned page and a question that it answers.

`docvqa_layout` lists the layouts. The set: https://www.docvqa.org/datasets
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field, field_validator

from phi3v_data.converters.helpers.annotations import embedded_image, once_a_source
from phi3v_data.converters.helpers.docvqa_layout import Question, find_questions
from phi3v_data.converters.helpers.image_names import stored_name
from phi3v_data.draft import Converter, DatasetInfo, Draft, DraftImage, Item, Options
from phi3v_data.sources.source import Source

PROMPT = "{question}\nAnswer briefly."


class DocVqaOptions(Options):
    """Options of the converter; prompt and languages as in the Phi-3.5-vision sample."""

    prompt: str = Field(PROMPT, description="The user's text; {question} is replaced by the question.")
    answer: Literal["first", "random", "all"] = Field(
        "first",
        description="Accepted answer to train on; all: one sample for each. `answers` always contains all of them.",
    )
    answer_seed: int = Field(0, description="Seed of --answer random, hashed together with the question's id.")
    language: Literal["en", "de", "es", "fr", "it"] = Field("en", description="Language, if a set has several.")
    config: str = Field("", description="Configuration of a Hub dataset that has several (DocVQA).")

    @field_validator("prompt", mode="after")
    @classmethod
    def _holds_question(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("it must contain {question}")
        return value


class DocVqa(Converter[DocVqaOptions]):
    """DocVQA (official files, Hub sets, mirrors) → a page, a question and all accepted answers; scored by ANLS."""

    name = "docvqa"
    version = "1"
    hub_id = "nielsr/docvqa_1200_examples"

    def plan(self, source: Source, options: DocVqaOptions) -> Iterable[Item]:
        for question in _questions(source, options.language, options.config):
            yield from _items(question, options)

    def convert(self, item: Item, options: DocVqaOptions) -> Draft:
        question: Question = item.data["question"]
        notes: tuple[str, ...] = ()
        if question.place is None:
            name, notes = stored_name(question.name, question.path)
            image = DraftImage(question.path, name=name)
        else:
            image = embedded_image(question.place.read().get("image"), item.key, question.place)
        return Draft(
            user=options.prompt.replace("{question}", question.text),
            assistant=item.data["answer"],
            images=[image],
            answers=question.answers,
            group=question.group,
            meta={"source_id": question.id},
            notes=notes,
        )

    def describe(self, source: Source, options: DocVqaOptions) -> DatasetInfo:
        questions = _questions(source, options.language, options.config)
        answered = {question.split for question in questions if question.answers}
        return DatasetInfo(
            name=self.name,
            task="vqa",
            metrics=("anls",),
            source="DocVQA (single page), https://www.docvqa.org",
            unlabelled=sorted({question.split for question in questions} - answered),
        )


def _items(question: Question, options: DocVqaOptions) -> Iterator[Item]:
    chosen = question.answers[:1]
    if options.answer == "all":
        chosen = tuple(dict.fromkeys(question.answers))
    elif options.answer == "random" and question.answers:
        digest = hashlib.sha256(f"{options.answer_seed}\0{question.id}".encode("utf-8", "surrogatepass")).digest()
        chosen = (question.answers[int.from_bytes(digest[:8], "big") % len(question.answers)],)
    for number, answer in enumerate(chosen or ("",)):
        yield Item(
            split=question.split,
            key=f"{question.key}.{number}" if number else question.key,
            path=question.path,
            group=question.group,
            size=question.size,
            bundle=question.bundle,
            data={"question": question, "answer": answer},
            reject=question.reject,
            message=question.message,
        )


@once_a_source
def _questions(source: Source, language: str, config: str) -> tuple[Question, ...]:
    return tuple(find_questions(source, language, config))
