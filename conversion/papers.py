"""What the cards cite."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    title: str
    url: str
    repository: str  # of its authors, on GitHub
    bibtex: str


@dataclass(frozen=True)
class Source:
    """Who reports the figures, and where."""

    reporter: str
    name: str
    url: str


PAPERS = {
    "pvt": Paper(
        "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions",
        "https://arxiv.org/abs/2102.12122",
        "whai362/PVT",
        """@inproceedings{wang2021pyramid,
  title={Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions},
  author={Wang, Wenhai and Xie, Enze and Li, Xiang and Fan, Deng-Ping and Song, Kaitao and Liang, Ding and Lu, Tong
    and Luo, Ping and Shao, Ling},
  booktitle={Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year={2021}
}""",
    ),
    "pvt_v2": Paper(
        "PVT v2: Improved Baselines with Pyramid Vision Transformer",
        "https://arxiv.org/abs/2106.13797",
        "whai362/PVT",
        """@article{wang2022pvt,
  title={PVT v2: Improved Baselines with Pyramid Vision Transformer},
  author={Wang, Wenhai and Xie, Enze and Li, Xiang and Fan, Deng-Ping and Song, Kaitao and Liang, Ding and Lu, Tong
    and Luo, Ping and Shao, Ling},
  journal={Computational Visual Media},
  year={2022}
}""",
    ),
    "p2t": Paper(
        "P2T: Pyramid Pooling Transformer for Scene Understanding",
        "https://arxiv.org/abs/2106.12011",
        "yuhuan-wu/P2T",
        """@article{wu2022p2t,
  title={P2T: Pyramid Pooling Transformer for Scene Understanding},
  author={Wu, Yu-Huan and Liu, Yun and Zhan, Xin and Cheng, Ming-Ming},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  year={2022}
}""",
    ),
}
