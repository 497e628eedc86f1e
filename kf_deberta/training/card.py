"""The model card of a trained model: the library's own card, in Korean where it shows sentences, and completed."""

from pathlib import Path

from sentence_transformers import SentenceTransformer

from kf_deberta.data.official import KOR_STS_ROWS
from kf_deberta.training.flags import SAME_RESULT

EXAMPLES = [
    "은행에서 예금을 만기로 인출하는 고객이 있다.",
    "만기가 된 정기예금을 찾으러 손님이 은행에 왔다.",
    "주식 시장에서 한 투자자가 주식을 매수한다.",
]

LOCAL = {"dataset_path", "trust_remote_code"} | SAME_RESULT  # of this machine, not of the recipe

TRANSFORMERS_USAGE = """### Usage with Transformers alone

Run the encoder, then average its token embeddings over the attention mask; the result is the same as above.

```python
import torch
from transformers import AutoModel, AutoTokenizer

sentences = {examples}
tokenizer = AutoTokenizer.from_pretrained("{model}")
model = AutoModel.from_pretrained("{model}")
inputs = tokenizer(sentences, padding=True, truncation=True, max_length={max_length}, return_tensors="pt")
with torch.no_grad():
    tokens = model(**inputs).last_hidden_state  # [batch, sequence, hidden]
mask = inputs["attention_mask"].unsqueeze(-1).float()
embeddings = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
print(embeddings)
```
"""

CITATIONS = """#### KorNLI and KorSTS
```bibtex
@article{ham2020kornli,
  title={KorNLI and KorSTS: New Benchmark Datasets for Korean Natural Language Understanding},
  author={Ham, Jiyeon and Choe, Yo Joong and Park, Kyubyong and Choi, Ilji and Soh, Hyungjoon},
  journal={arXiv preprint arXiv:2004.03289},
  year={2020}
}
```
"""

KF_DEBERTA_CITATION = """#### KF-DeBERTa
```bibtex
@proceedings{jeon-etal-2023-kfdeberta,
  title         = {KF-DeBERTa: Financial Domain-specific Pre-trained Language Model},
  author        = {Eunkwang Jeon, Jungdae Kim, Minsang Song, and Joohyun Ryu},
  booktitle     = {Proceedings of the 35th Annual Conference on Human and Cognitive Language Technology},
  moth          = {oct},
  year          = {2023},
  publisher     = {Korean Institute of Information Scientists and Engineers},
  url           = {http://www.hclt.kr/symp/?lnb=conference},
  pages         = {143--148},
}
```
"""


def prepare_model_card(model: SentenceTransformer, base_model: str) -> None:
    """Set what the library's card takes from the user; the licence stays open, it is the publisher's to choose.

    Args:
        model: the model about to be trained.
        base_model: hub name or local directory of its base; only a hub name goes into the metadata.
    """
    data = model.model_card_data
    data.set_language("ko")
    data.local_files_only = True  # no hub look-ups while training
    data.generate_widget_examples = False
    data.widget = [{"source_sentence": EXAMPLES[0], "sentences": EXAMPLES[1:]}]  # else it shows training rows
    data.usage_examples = EXAMPLES
    if not Path(base_model).exists():
        data.base_model = base_model
    data.model_name = f"Korean sentence embeddings from {base_model.rstrip('/').rsplit('/', 1)[-1]}"


def write_model_card(model: SentenceTransformer, facts: dict, path: Path) -> None:
    """Write the library's card with figures, recipe, plain transformers usage and citations added.

    Args:
        model: holds the card data that the training callback and the evaluators collected.
        facts: what training_arguments.json holds, the test figures included.
        path: README.md of the model directory.
    """
    if not model.model_card_data.model_id:  # no --hub_model_id
        model.model_card_data.set_model_id(path.parent.name)
    model._create_model_card(str(path.parent))
    card = path.read_text(encoding="utf-8")
    name = model.model_card_data.model_id
    usage = TRANSFORMERS_USAGE.format(model=name, max_length=model.max_seq_length, examples=EXAMPLES)
    card = _replace(card, "<!--\n### Direct Usage (Transformers)", "-->\n", usage)
    card = _insert_before(card, "## Training Details", _results(facts) + "\n" + _recipe(facts))
    citations = CITATIONS
    if "kf-deberta" in facts["arguments"]["model_name_or_path"]:
        citations += KF_DEBERTA_CITATION
    card = _insert_before(card, "<!--\n## Glossary", citations)
    path.write_text(card, encoding="utf-8")


def _results(facts: dict) -> str:
    names = [name for name in facts["test"] if not name[0].isdigit()]
    pairs = facts["test_pairs"]
    official = pairs == KOR_STS_ROWS["sts-test.tsv"]
    rows = [
        "## KorSTS test, x100" if official else f"## Test pairs ({pairs:,}, not the official KorSTS file), x100",
        "",
        "| model | " + " | ".join(names) + " |",
        "|:--|" + "--:|" * len(names),
        "| before training | " + " | ".join(f"{facts['baseline'][name]:.2f}" for name in names) + " |",
        "| this model | " + " | ".join(f"{facts['test'][name]:.2f}" for name in names) + " |",
        "",
    ]
    prefixes = {name: value for name, value in facts["test"].items() if name.endswith("_cosine_spearman")}
    if prefixes:
        dims = [name.split("_")[0] for name in prefixes]
        rows += [
            "Matryoshka prefixes, cosine Spearman:",
            "",
            "| " + " | ".join(dims) + " |",
            "|" + "--:|" * len(dims),
            "| " + " | ".join(f"{value:.2f}" for value in prefixes.values()) + " |",
            "",
        ]
    return "\n".join(rows)


def _recipe(facts: dict) -> str:
    arguments = {**facts["arguments"], "script": facts["script"], "seed": facts["seed"]}
    rows = ["## Recipe", "", "| what | value |", "|:--|:--|"]
    arguments["model_name_or_path"] = facts["arguments"]["model_name_or_path"].rstrip("/").rsplit("/", 2)[-1]
    rows += [f"| {name} | {value} |" for name, value in arguments.items() if value is not None and name not in LOCAL]
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    return "\n".join([*rows, f"| libraries | {libraries} |", "", ""])


def _replace(card: str, start: str, end: str, text: str) -> str:
    begin = card.find(start)
    if begin < 0:  # another version's template: the section is added, nothing is lost
        return card + "\n" + text
    return card[:begin] + text + card[card.index(end, begin) + len(end) :]


def _insert_before(card: str, heading: str, text: str) -> str:
    begin = card.find(heading)
    return card + "\n" + text if begin < 0 else card[:begin] + text + "\n" + card[begin:]
