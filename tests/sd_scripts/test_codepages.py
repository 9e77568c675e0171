"""Encodings of short texts, by their bytes."""

import pytest

from sdnb.sd_scripts.codepages import decoded, encoded, encoding_of

TEXTS = {
    "gb18030": ["D:\\输出", "训练", "D:\\AI绘画\\训练集", "rem 我的模型，测试", "--output_name=小红"],
    "cp932": ["D:\\出力", "D:\\データ\\猫", "画像", "rem 学習スクリプト", "--output_name=猫", "D:\\素材\\表"],
    "cp1252": ["C:\\Users\\José\\modèle", "D:\\Müller", "übung", "été", "# naïve – test “x”", "--output_name=Ängström"],
    "utf-8": ["plain", "D:\\输出", "é", ""],
    "utf-8-sig": ["plain", "D:\\输出"],
}


@pytest.mark.parametrize(("encoding", "text"), [(encoding, text) for encoding, texts in TEXTS.items() for text in texts])
def test_a_few_letters_are_enough(encoding, text):
    data = text.encode(encoding)
    assert encoding_of(data) == encoding
    assert decoded(data, encoding) == text
    assert encoded(text, encoding) == data


def test_nothing_is_guessed():
    for data in ("D:\\輸出\\模型".encode("big5"), "D:\\модели\\обучение".encode("cp1251"), b"\xff\xfa\xf0\xff", b"\0\xe9", b"\xe9" * 9):
        assert encoding_of(data) == ""
    assert encoding_of("学".encode()[:-1], cut=True) == "utf-8"
    with pytest.raises(ValueError, match="encode"):
        encoded("模型", "cp1252")
