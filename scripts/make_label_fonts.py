"""Cuts the letters of East Asian labels out of Noto Sans CJK (SIL Open Font License 1.1).

    python scripts/make_label_fonts.py NotoSansCJK-Regular.ttc

Writes src/omokage/trust/data/label_ja.otf (kana, and the characters that labels are likely to use) and label_zh.otf
(the same for Chinese, in the shapes that its readers know). The font is in Debian's `fonts-noto-cjk`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

DATA = Path(__file__).parent.parent / "src/omokage/trust/data"
ASCII = "".join(map(chr, range(0x20, 0x7F)))
KANA = (
    "".join(map(chr, range(0x3041, 0x3097))) + "".join(map(chr, range(0x30A1, 0x30FF))) + "、。・「」ー〜!?"
)
WORDS_JA = (
    "人工知能生成合成映像動画画像音声作成制作編集加工使用実在人物本人許可同意見本試作社内限定宣伝広告教育研修案内受付説明会社"
    "株式有限等用転載禁止年月日時東京大阪日本語英中国仮想架空再現演出提供協力撮影出演者氏名肖像権利注意本編登場です"
)
WORDS_ZH = "人工智能生成合成视频图像音频数字虚拟样本内部使用广告培训接待"


def cut(source: Path, face: str, letters: str, target: Path) -> None:
    """Write the face of a collection whose name ends in `face` with nothing but `letters`."""
    for number in range(20):
        font = TTFont(source, fontNumber=number)
        if str(font["name"].getDebugName(1)).endswith(face):
            break
    else:
        raise SystemExit(f"{source} holds no face {face}")
    options = subset.Options(
        layout_features=["kern"], hinting=False, desubroutinize=True, notdef_outline=True
    )
    options.name_IDs = [0, 1, 2, 4, 5, 13, 14]
    cutter = subset.Subsetter(options)
    cutter.populate(text=letters)
    cutter.subset(font)
    font.save(target)
    print(f"{target.name}: {len(set(letters))} letters, {target.stat().st_size} bytes")


def main() -> None:
    source = Path(sys.argv[1])
    texts = [
        profile["texts"]
        for profile in json.loads((DATA / "labels.json").read_text(encoding="utf-8")).values()
    ]
    for language, face, words in (("ja", " JP", KANA + WORDS_JA), ("zh", " SC", "・，。" + WORDS_ZH)):
        letters = ASCII + words + "".join(text.get(language, "") for text in texts)
        cut(source, face, letters, DATA / f"label_{language}.otf")


if __name__ == "__main__":
    main()
