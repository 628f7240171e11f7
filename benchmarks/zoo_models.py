"""Models of other libraries with small random configurations: what `benchmarks.zoo` and its test bring.

A configuration keeps the structure of its family (grouped queries, shared layers, windows, relative positions, mixtures
of experts) and is small in width, depth and vocabulary. Nothing is downloaded.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

CLASSES, EXAMPLES, TOKENS, VOCABULARY = 3, 60, 16, 96
LABELS = torch.arange(EXAMPLES) % CLASSES
# Token ids that stand for something else than a word: padding and the end of a text.
PADDING, END = 0, 2

Brought = tuple[nn.Module, Any]
"""A model and its data, as :func:`autocompress.bring_model` takes them."""


@dataclass(frozen=True)
class ZooModel:
    """A model of another library.

    Attributes:
        name: Name in the table.
        library: Package that it comes from.
        build: Function that returns the model with random weights, and its data.
    """

    name: str
    library: str
    build: Callable[[], Brought]


# Sizes under the names that most configurations of transformers share.
SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GROUPED: Mapping[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
GPT: Mapping[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

TEXT_CLASSIFIERS: Mapping[str, Mapping[str, Any]] = {
    "Bert": SIZES,
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
    "Roberta": SIZES,
    "Albert": {**SIZES, "embedding_size": 16},
    "Electra": {**SIZES, "embedding_size": 16},
    "MobileBert": {
        **SIZES,
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
        "true_hidden_size": 16,
        "num_feedforward_networks": 2,
    },
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32},
    "Deberta": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32},
    "GPT2": GPT,
    "T5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "eos_token_id": END,
        "decoder_start_token_id": PADDING,
    },
    "XLMRoberta": SIZES,
    "Camembert": SIZES,
    "MPNet": SIZES,
    "ConvBert": {**SIZES, "embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3},
    "SqueezeBert": {**SIZES, "embedding_size": 32},
    "RoFormer": {**SIZES, "embedding_size": 32},
    "Ernie": SIZES,
    "MegatronBert": SIZES,
    "RemBert": {**SIZES, "input_embedding_size": 16},
    "Data2VecText": SIZES,
    "IBert": SIZES,
    "Nystromformer": {**SIZES, "segment_means_seq_len": 16, "num_landmarks": 16},
    "Longformer": {**SIZES, "attention_window": 8},
    "BigBird": {**SIZES, "attention_type": "original_full"},
    "FNet": {key: value for key, value in SIZES.items() if key != "num_attention_heads"},
    "Funnel": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1], "num_decoder_layers": 1},
    "XLNet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "XLM": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    "Flaubert": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    "Bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "eos_token_id": END,
        "decoder_start_token_id": END,
        "bos_token_id": 1,
        "forced_eos_token_id": END,
    },
    "OPT": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "GPTNeo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
    },
    "GPTNeoX": SIZES,
    "GPTJ": {**GPT, "rotary_dim": 4},
    "CTRL": {**GPT, "dff": 64},
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": 8},
    "Qwen2": GROUPED,
    "Qwen3": GROUPED,
    "Gemma": GROUPED,
    "Phi": {**SIZES, "num_key_value_heads": 2},
    "StableLm": {**SIZES, "num_key_value_heads": 2},
    "Mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "ModernBert": SIZES,
}

SWIN_SIZES: Mapping[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
IMAGE_SIZES: Mapping[str, Any] = {"image_size": 32, "patch_size": 8, **SIZES}
STAGES: Mapping[str, Any] = {
    "depths": [1, 1, 1],
    "hidden_sizes": [16, 32, 32],
    "num_encoder_blocks": 3,
    "sr_ratios": [4, 2, 1],
    "patch_sizes": [7, 3, 3],
    "strides": [4, 2, 2],
    "num_attention_heads": [1, 2, 4],
    "mlp_ratios": [2, 2, 2],
    "decoder_hidden_size": 16,
}
IMAGE_CLASSIFIERS: Mapping[str, Mapping[str, Any]] = {
    "ViT": IMAGE_SIZES,
    "DeiT": IMAGE_SIZES,
    "Beit": {**IMAGE_SIZES, "use_relative_position_bias": True, "out_indices": [0, 1]},
    "Dinov2": IMAGE_SIZES,
    "ViTMSN": IMAGE_SIZES,
    "Swin": SWIN_SIZES,
    "Swinv2": SWIN_SIZES,
    "ConvNext": {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2},
    "ConvNextV2": {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2, "image_size": 32},
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]},
    "RegNet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "groups_width": 8},
    "MobileNetV1": {"depth_multiplier": 0.25, "image_size": 32, "min_depth": 8},
    "MobileNetV2": {"depth_multiplier": 0.25, "image_size": 32, "min_depth": 8},
    "MobileViT": {
        "image_size": 64,
        "hidden_sizes": [24, 32, 40],
        "neck_hidden_sizes": [8, 8, 16, 24, 24, 32, 40],
        "num_attention_heads": 4,
    },
    "PoolFormer": {
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "num_encoder_blocks": 2,
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "padding": [2, 1],
    },
    "Segformer": STAGES,
    "FocalNet": {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "hidden_sizes": [16, 32]},
    "Bit": {"hidden_sizes": [32, 64], "depths": [1, 1], "embedding_size": 16, "num_groups": 8},
    "EfficientNet": {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
}

SPEECH: Mapping[str, Any] = {
    **SIZES,
    "conv_dim": [16, 16],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
    "mask_time_prob": 0.0,
}
SPEECH_CLASSIFIERS: Mapping[str, Mapping[str, Any]] = {
    "Wav2Vec2": SPEECH,
    "Hubert": SPEECH,
    "WavLM": SPEECH,
    "SEW": {**SPEECH, "squeeze_factor": 2},
    "UniSpeech": SPEECH,
}

TIMM: Mapping[str, Mapping[str, Any]] = {
    "resnet18": {"channels": (16, 16, 32, 32)},
    "resnet26d": {"channels": (8, 16, 16, 32)},
    "seresnext26d_32x4d": {"channels": (16, 16, 32, 32), "cardinality": 4},
    "skresnet18": {"channels": (16, 32, 32, 32)},
    "res2net50d": {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)},
    "mobilenetv2_035": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "mnasnet_small": {},
    "efficientnet_lite0": {},
    "efficientnet_b0": {},
    "tinynet_e": {},
    "lcnet_035": {},
    "ghostnet_050": {},
    "regnetx_002": {},
    "regnety_002": {},
    "repvgg_a0": {},
    "densenet121": {"block_config": (2, 2, 2), "growth_rate": 8},
    "dla46_c": {},
    "ese_vovnet19b_slim_dw": {},
    "darknet17": {},
    "cspresnet50": {},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)},
    "inception_next_atto": {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64)},
    "mambaout_femto": {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
    "deit_tiny_distilled_patch16_224": {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
    },
    "eva02_tiny_patch14_224": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
    "mixer_s32_224": {"img_size": 64},
    "gmlp_ti16_224": {"img_size": 64},
    "resmlp_12_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 16,
        "depths": (2, 2),
        "num_heads": (2, 4),
    },
    "xcit_nano_12_p16_224": {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4},
    "cait_xxs24_224": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
    "pit_ti_224": {"img_size": 64, "base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (2, 4, 4)},
    "levit_128s": {"img_size": 64, "embed_dim": (32, 48, 64), "num_heads": (2, 3, 4), "depth": (1, 1, 1)},
    "edgenext_xx_small": {"dims": (16, 24, 32, 48), "depths": (1, 1, 2, 1)},
    "mobilevitv2_050": {},
    "poolformer_s12": {},
    "efficientvit_b0": {"widths": (8, 16, 16, 32, 32), "depths": (1, 1, 1, 1, 1), "head_widths": (64, 64)},
    "fastvit_t8": {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 64)},
    "starnet_s050": {},
    "hgnetv2_b0": {},
    "visformer_tiny": {"img_size": 32, "embed_dim": 48, "depth": (1, 1, 1), "num_heads": 3},
    "convit_tiny": {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "local_up_to_layer": 1,
    },
    "twins_svt_small": {
        "img_size": 64,
        "embed_dims": (16, 16, 32, 32),
        "num_heads": (1, 2, 4, 4),
        "depths": (1, 1, 1, 1),
        "wss": (4, 4, 4, 4),
    },
    "pvt_v2_b0": {"num_heads": (1, 2, 4, 4), "embed_dims": (8, 16, 32, 32), "depths": (1, 1, 1, 1)},
    "davit_tiny": {"embed_dims": (16, 16, 32, 32), "num_heads": (2, 2, 4, 4), "depths": (1, 1, 1, 1)},
    "coat_tiny": {"img_size": 64, "embed_dims": (64, 64, 64, 64), "serial_depths": (1, 1, 1, 1)},
    "hrnet_w18_small": {},
    "gernet_s": {},
    "botnet26t_256": {"img_size": 64},
    "tiny_vit_5m_224": {
        "embed_dims": (16, 32, 32, 64),
        "depths": (1, 1, 1, 1),
        "num_heads": (2, 2, 4, 4),
        "window_sizes": (4, 4, 4, 2),
    },
}

TORCHVISION: tuple[str, ...] = (
    "resnet18",
    "mobilenet_v2",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "mnasnet0_5",
    "googlenet",
    "mobilenet_v3_small",
    "regnet_y_400mf",
)
SIDES: Mapping[str, int] = {"squeezenet1_1": 64, "googlenet": 64}

#: The models that the test suite brings.
TESTED = (
    *("Bert", "DistilBert", "Albert", "DebertaV2", "GPT2", "Llama", "ViT", "Wav2Vec2"),
    *("resnet18", "mobilenetv3_small_050", "convnext_atto", "mixer_s32_224"),
)


def make_texts() -> dict[str, Tensor]:
    """Return token ids and the attention mask of texts of different lengths, padded at the end, ``[N, T]`` each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (EXAMPLES, TOKENS), generator=generator)
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (EXAMPLES,), generator=generator)
    # The longest text comes first, so that the example of the costs has no padding.
    lengths[0] = TOKENS
    positions = torch.arange(TOKENS)
    ids = torch.where(positions == lengths[:, None] - 1, END, ids)
    is_word = positions < lengths[:, None]
    return {"input_ids": torch.where(is_word, ids, PADDING), "attention_mask": is_word.long()}


def make_images(side: int = 32) -> Tensor:
    """Return random images, ``[N, 3, H, W]``."""
    return torch.randn(EXAMPLES, 3, side, side, generator=torch.Generator().manual_seed(0))


def build_text_classifier(family: str, sizes: Mapping[str, Any]) -> Brought:
    """Return a text classifier of transformers and its data."""
    library = importlib.import_module("transformers")
    special = {"vocab_size": VOCABULARY, "num_labels": CLASSES, "pad_token_id": PADDING}
    config = getattr(library, f"{family}Config")(**{**special, **sizes})
    model = getattr(library, f"{family}ForSequenceClassification")(config)
    texts = make_texts()
    return model, ({"input_ids": texts["input_ids"]} if family == "FNet" else texts, LABELS)


def build_image_classifier(family: str, sizes: Mapping[str, Any]) -> Brought:
    """Return an image classifier of transformers and its data."""
    library = importlib.import_module("transformers")
    config = getattr(library, f"{family}Config")(num_labels=CLASSES, **sizes)
    images = make_images(int(sizes.get("image_size", 32)))
    return getattr(library, f"{family}ForImageClassification")(config), ({"pixel_values": images}, LABELS)


def build_speech_classifier(family: str, sizes: Mapping[str, Any]) -> Brought:
    """Return a classifier of waveforms of transformers and its data."""
    library = importlib.import_module("transformers")
    config = getattr(library, f"{family}Config")(num_labels=CLASSES, **sizes)
    sounds = torch.randn(EXAMPLES, 800, generator=torch.Generator().manual_seed(0))
    return getattr(library, f"{family}ForSequenceClassification")(config), ({"input_values": sounds}, LABELS)


def build_timm_model(name: str, sizes: Mapping[str, Any]) -> Brought:
    """Return a model of timm and its data."""
    library = importlib.import_module("timm")
    model = library.create_model(name, pretrained=False, num_classes=CLASSES, **sizes)
    return model, (make_images(int(sizes.get("img_size", 64))), LABELS)


def build_torchvision_model(name: str) -> Brought:
    """Return a model of torchvision and its data."""
    library = importlib.import_module("torchvision.models")
    settings = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    model = library.get_model(name, weights=None, num_classes=CLASSES, **settings)
    return model, (make_images(SIDES.get(name, 32)), LABELS)


def build_torch_encoder() -> Brought:
    """Return a transformer encoder of torch with a padding mask, and its data."""
    texts = make_texts()
    return TorchEncoder(), ((texts["input_ids"], texts["attention_mask"]), LABELS)


class TorchEncoder(nn.Module):
    """Text classifier of `torch.nn.TransformerEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return class logits, ``[B, C]``."""
        hidden: Tensor = self.encoder(self.embedding(tokens), src_key_padding_mask=mask == 0)
        logits: Tensor = self.classifier(hidden[:, 0])
        return logits


def stub_torchvision() -> None:
    """Define the operators that torchvision needs to be imported, where its build does not fit torch's."""
    if _LIBRARIES or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        # A library that is collected takes its operators along.
        _LIBRARIES.append(library)


_LIBRARIES: list[torch.library.Library] = []


def list_models() -> list[ZooModel]:
    """Return the models of all libraries that are installed."""
    # transformers imports torchvision where it is installed.
    stub_torchvision()
    families: list[tuple[str, Callable[..., Brought], Mapping[str, Mapping[str, Any]]]] = [
        ("transformers", build_text_classifier, TEXT_CLASSIFIERS),
        ("transformers", build_image_classifier, IMAGE_CLASSIFIERS),
        ("transformers", build_speech_classifier, SPEECH_CLASSIFIERS),
        ("timm", build_timm_model, TIMM),
    ]
    models = [ZooModel("torch TransformerEncoder", "torch", build_torch_encoder)]
    for library, build, table in families:
        models += [ZooModel(f"{library} {name}", library, partial(build, name, sizes)) for name, sizes in table.items()]
    models += [
        ZooModel(f"torchvision {name}", "torchvision", partial(build_torchvision_model, name)) for name in TORCHVISION
    ]
    return [model for model in models if importlib.util.find_spec(model.library) is not None]
