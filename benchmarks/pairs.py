"""Pairs of sentences without labels, for MRPC and the recipe `gradual-unlabelled`: 9,826 from GLUE's training splits.

    python benchmarks/pairs.py --glue FOLDER --output pairs.parquet

They are the pairs of RTE; each first sentence of MRPC with the sentence of MRPC that is most similar to it, by TF-IDF,
and not its own; MRPC's pairs in the other order. FOLDER holds GLUE as the hub lays it out: mrpc/, rte/.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer

SIDES = ["sentence1", "sentence2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    mrpc, rte = (pd.read_parquet(args.glue / task / "train-00000-of-00001.parquet")[SIDES] for task in ("mrpc", "rte"))
    turned = pd.DataFrame({"sentence1": mrpc.sentence2, "sentence2": mrpc.sentence1})
    pd.concat([rte, most_similar(mrpc), turned], ignore_index=True).to_parquet(args.output)


def most_similar(pairs: pd.DataFrame) -> pd.DataFrame:
    """Each first sentence with the most similar of all sentences that is neither equal to it nor its partner."""
    text, size = np.array([*pairs.sentence1, *pairs.sentence2]), len(pairs)
    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(text)
    similarity = (vectors[:size] @ vectors.T).toarray()
    first = np.arange(size)
    similarity[first, first + size] = -1
    similarity[text[:size, None] == text] = -1
    return pd.DataFrame({"sentence1": text[:size], "sentence2": text[similarity.argmax(1)]})


if __name__ == "__main__":
    main()
