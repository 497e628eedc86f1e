"""Files of one sentence per line, and sentences to try a model with."""

from pathlib import Path

from kf_deberta.cli import InputError, check_input_file
from kf_deberta.data.text import compose_texts

# the financial example of the published README
CORPUS = [
    "주식 시장에서 한 투자자가 주식을 매수한다.",
    "은행에서 예금을 만기로 인출하는 고객이 있다.",
    "금융 전문가가 새로운 투자 전략을 개발하고 있다.",
    "증권사에서 주식 포트폴리오를 관리하는 팀이 있다.",
    "금융 거래소에서 새로운 디지털 자산이 상장된다.",
    "투자 은행가가 고객에게 재무 계획을 제안하고 있다.",
    "금융 회사에서 신용평가 모델을 업데이트하고 있다.",
    "투자자들이 새로운 ICO에 참여하려고 하고 있다.",
    "경제 전문가가 금리 인상에 대한 예측을 내리고 있다.",
]
QUERIES = [
    "한 투자자가 비트코인을 매수한다.",
    "은행에서 대출을 상환하는 고객이 있다.",
    "금융 분야에서 새로운 기술 동향을 조사하고 있다.",
]


def read_sentences(path: Path) -> list[str]:
    """Return the sentences of a UTF-8 file, one per line, Hangul composed; InputError where it is none."""
    check_input_file(path)
    return compose_texts(lines_of(path.read_bytes(), str(path)), path)


def lines_of(content: bytes, name: str) -> list[str]:
    """Return the lines of UTF-8 text that hold something; InputError names `name` and the line that is wrong."""
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise InputError(f"{name}:{number}: not UTF-8; give UTF-8 text") from error
    if not any(lines):
        raise InputError(f"{name}: no sentence in it; write one per line")
    return [line for line in lines if line]
