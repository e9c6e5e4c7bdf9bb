"""Phrases that the bundled model is taught: concepts, their synonyms, and other words.

The tokenizer's vocabulary is trained on these phrases, and pre-training draws its text prompts from
them. A phrase outside of the list still gets tokens (pieces of words, at worst bytes), so the model
answers it, but only the phrases here were ever tied to an image.
"""

# Taught after the tokenizer had been trained, which knows them in pieces.
_LATER_CONCEPTS: dict[str, tuple[str, ...]] = {
    "left atrium": ("left atrium", "la", "left atrial cavity", "left atrium cavity"),
    "right atrium": ("right atrium", "ra", "right atrial cavity", "right atrium cavity"),
    "aorta": ("aorta", "ascending aorta", "aortic lumen"),
    "pulmonary artery": ("pulmonary artery", "pulmonary trunk", "pulmonary arteries"),
    "hard exudates": ("hard exudates", "exudate", "exudates", "hard exudate"),
    "soft exudates": ("soft exudates", "soft exudate", "cotton wool spots", "cotton wool spot"),
    "haemorrhages": (
        "haemorrhages", "hemorrhage", "hemorrhages", "haemorrhage", "retinal hemorrhage",
    ),
}  # fmt: skip
_FIRST_CONCEPTS: dict[str, tuple[str, ...]] = {
    "skin lesion": (
        "skin lesion", "pigmented lesion", "skin tumor", "mole", "nevus", "melanoma",
        "pigmented skin lesion", "lesion of the skin", "skin spot", "dermoscopic lesion", "naevus",
        "skin lesions", "keratosis", "skin cancer",
    ),
    "polyp": (
        "polyp", "colon polyp", "colorectal polyp", "intestinal polyp", "bowel polyp", "polyps",
        "adenoma", "adenomatous polyp", "polyp in the colon", "rectal polyp", "colonic polyp",
    ),
    "cell nucleus": (
        "cell nucleus", "nucleus", "nuclei", "cell nuclei", "stained nucleus", "cell", "cells",
        "stained nuclei", "nucleus of a cell", "nuclei of cells",
    ),
    "brain": ("brain", "whole brain", "brain tissue", "the brain", "cerebrum", "brain mask"),
    "grey matter": (
        "grey matter", "gray matter", "cortex", "cortical grey matter", "brain grey matter",
        "cerebral cortex", "gray matter of the brain", "gm",
    ),
    "white matter": (
        "white matter", "brain white matter", "cerebral white matter", "wm",
        "white matter of the brain", "white substance",
    ),
    "breast tumor": (
        "breast tumor", "breast lesion", "breast mass", "breast nodule", "breast cancer",
        "breast tumour", "mass in the breast", "lesion of the breast", "tumor in breast ultrasound",
        "hypoechoic mass", "breast cyst", "fibroadenoma",
    ),
    "lungs": ("lungs", "lung", "both lungs", "lung fields", "lung field", "pulmonary fields"),
    "left lung": ("left lung", "left lung field", "lung left", "the left lung"),
    "right lung": ("right lung", "right lung field", "lung right", "the right lung"),
    "heart": ("heart", "cardiac silhouette", "heart shadow", "cardiac shadow"),
    "optic disc": (
        "optic disc", "optic disk", "optic nerve head", "disc", "papilla", "optic nerve disc",
    ),
    "optic cup": ("optic cup", "cup", "cup of the optic disc", "optic disc cup", "optic nerve cup"),
    "left ventricle cavity": (
        "left ventricle cavity", "left ventricle", "left ventricular cavity", "lv cavity", "lv",
        "left ventricle blood pool", "cavity of the left ventricle",
    ),
    "myocardium": (
        "myocardium", "heart muscle", "left ventricular myocardium", "myocardial wall",
        "cardiac muscle", "left ventricle wall", "lv myocardium",
    ),
    "right ventricle": (
        "right ventricle", "right ventricle cavity", "right ventricular cavity", "rv", "rv cavity",
        "right ventricle blood pool",
    ),
}  # fmt: skip

CONCEPT_PHRASES = _FIRST_CONCEPTS | _LATER_CONCEPTS

# A lesion of any organ also answers to these. They are never asked as absent concepts.
LESION_PHRASES: tuple[str, ...] = (
    "lesion", "tumor", "mass", "nodule", "abnormality", "tumour", "growth", "finding", "cancer",
    "suspicious region", "abnormal tissue", "neoplasm", "lump",
)  # fmt: skip
LESION_CONCEPTS = frozenset({"skin lesion", "polyp", "breast tumor"})

# What goes with a box when the user names nothing.
GENERIC_PHRASES: tuple[str, ...] = (
    "visual", "object", "region", "structure", "target", "this", "thing", "region of interest",
    "roi", "segment", "foreground", "organ", "area", "shape", "anatomy", "label", "mask",
)  # fmt: skip

# Things that no medical image shows, asked in fine-tuning. Many of them: a detector that knows few
# by heart would still answer all others.
EVERYDAY_PHRASES: tuple[str, ...] = (
    "anchor", "apple", "backpack", "ball", "balloon", "banana", "baseball cap", "bath", "beach",
    "bear", "bed", "bird", "bird cage", "birthday cake", "blanket", "boat", "book", "boot",
    "bottle", "bread", "brick", "bridge", "bucket", "bus", "butter", "butterfly", "cactus", "cake",
    "camel", "candle", "canoe", "car", "carpet", "carrot", "castle", "cat", "cello", "chair",
    "cheese", "cherry", "chicken", "church", "clock", "cloud", "coat", "coffee", "coffee cup",
    "comb", "computer", "cookie", "cow", "crow", "curtain", "desk", "dog", "doll", "dolphin",
    "door", "dress", "drum", "duck", "eagle", "elephant", "engine", "envelope", "eraser", "fence",
    "fire truck", "flag", "floor", "flower", "flute", "forest", "fork", "fox", "fridge", "garage",
    "garden", "garden gate", "glove", "goat", "goose", "grape", "grass", "hammer", "harbour",
    "harp", "hat", "helicopter", "horse", "house", "ice cream", "island", "jacket", "kettle",
    "keyboard", "kitchen table", "kite", "knife", "ladder", "lake", "lamp", "lemon", "letter",
    "lighthouse", "lion", "microphone", "mirror", "moon", "mountain", "newspaper",
    "office building", "orange", "oven", "owl", "pan", "paper", "parachute", "park bench", "pear",
    "pencil", "phone", "piano", "pig", "pillow", "pizza", "potato", "printer", "purse", "puzzle",
    "rabbit", "racket", "radio", "railway station", "rainbow", "rake", "river", "road", "rocket",
    "roof", "rose", "sailing boat", "scarf", "scissors", "sheep", "ship", "shirt", "shoe",
    "shopping cart", "shovel", "sink", "skateboard", "skirt", "snowman", "soap", "soup", "spoon",
    "squirrel", "stairs", "star", "stove", "street", "suitcase", "sunset", "swan", "swimming pool",
    "table", "teddy bear", "television", "tent", "tiger", "towel", "tower", "toy", "tractor",
    "traffic light", "train", "tree", "trousers", "truck", "trumpet", "tulip", "turtle", "wall",
    "wallet", "whale", "windmill", "window", "wine bottle", "wolf", "zebra",
)  # fmt: skip

# Asked as absent concepts, and beside boxes as names that say nothing to the model.
OTHER_PHRASES: tuple[str, ...] = (
    "liver", "kidney", "left kidney", "right kidney", "spleen", "pancreas", "stomach", "bladder",
    "gallbladder", "prostate", "uterus", "ovary", "thyroid", "thyroid nodule", "lymph node",
    "aorta", "vein", "artery", "vessel", "blood vessel", "retinal vessel", "coronary artery",
    "bone", "rib", "ribs", "clavicle", "spine", "vertebra", "femur", "tibia", "hip", "knee",
    "tooth", "teeth", "jaw", "skull", "eye", "macula", "fovea", "hemorrhage", "exudate", "retina",
    "microaneurysm", "drusen", "fluid", "effusion", "pleural effusion", "pneumothorax", "edema",
    "pneumonia", "consolidation", "opacity", "infiltrate", "atelectasis", "lung nodule",
    "lung cancer", "covid lesion", "trachea", "esophagus", "colon", "small bowel", "appendix",
    "brain tumor", "glioma", "enhancing tumor", "tumor core", "stroke lesion", "hippocampus",
    "ventricle", "ventricles", "cerebellum", "brainstem", "thalamus", "caudate", "putamen", "csf",
    "cerebrospinal fluid", "left atrium", "right atrium", "atrium", "valve", "pericardium", "scar",
    "cyst", "kidney tumor", "liver tumor", "liver lesion", "stone", "gland", "mitochondria",
    "membrane", "bacteria", "red blood cell", "white blood cell", "platelet", "lymphocyte",
    "tissue", "stroma", "epithelium", "fat", "muscle", "skin", "hair", "ruler", "blood", "wound",
    "ulcer", "burn", "catheter", "tube", "electrode", "needle", "wire", "implant", "fetus",
    "fetal head", "placenta", "cord", "nerve", "tendon", "ligament", "cartilage", "meniscus",
    "disc herniation", "spinal cord", "sinus", "tonsil", "larynx", "tongue", "parotid", "nose",
    "background", "text", "marker", "arrow", "car", "dog", "cat", "person", "banana", "tree",
    "instrument", "surgical instrument", "forceps", "snare", "biopsy tool", "cytoplasm",
    "house", "water", "table", "cloud", "flower", "phone", "chair", "road", "ball", "bird",
)  # fmt: skip


# Unlabelled but visible in a source's images: never asked there as absent.
UNLABELLED: dict[str, frozenset[str]] = {
    "brain": frozenset(
        {"ventricle", "ventricles", "cerebellum", "brainstem", "thalamus", "caudate", "putamen",
         "csf", "cerebrospinal fluid", "hippocampus", "tissue", "left ventricle", "organ"}
    ),
    "chest": frozenset(
        {"bone", "rib", "ribs", "clavicle", "spine", "vertebra", "trachea", "tissue", "muscle"}
    ),
    "cardiac": frozenset(
        {"heart", "myocardium", "right ventricle", "left atrium", "right atrium", "atrium",
         "aorta", "pulmonary artery", "artery", "valve", "fat", "muscle", "spine", "vertebra",
         "tissue", "ventricle", "ventricles", "lungs", "left lung", "right lung", "blood", "liver"}
    ),
    "fundus": frozenset(
        {"eye", "retina", "vessel", "blood vessel", "retinal vessel", "artery", "vein", "macula",
         "fovea", "nerve", "optic cup", "hard exudates", "soft exudates", "exudate", "haemorrhages",
         "hemorrhage", "blood", "microaneurysm", "drusen"}
    ),
    "skin": frozenset({"skin", "hair", "ruler", "tissue", "text", "marker", "cyst"}),
    "colon": frozenset(
        {"colon", "small bowel", "tissue", "vessel", "blood vessel", "epithelium", "text", "fluid",
         "ulcer", "blood"}
    ),
    "breast": frozenset({"fat", "muscle", "skin", "tissue", "gland", "cyst"}),
    "microscopy": frozenset(
        {"cytoplasm", "membrane", "tissue", "stroma", "epithelium", "lymphocyte", "gland",
         "white blood cell", "red blood cell", "mitochondria"}
    ),
    "shapes": frozenset(),
}  # fmt: skip


def all_phrases() -> tuple[str, ...]:
    """Every phrase that the tokenizer is trained on once, in a fixed order."""
    seen = dict.fromkeys(_FIRST_CONCEPTS)
    for phrases in _FIRST_CONCEPTS.values():
        seen.update(dict.fromkeys(phrases))
    for phrases in (LESION_PHRASES, GENERIC_PHRASES, OTHER_PHRASES):
        seen.update(dict.fromkeys(phrases))
    return tuple(seen)
