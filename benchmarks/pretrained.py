"""Make the files of a shipped model: `gebm/pretrained_files/fashion_mnist*`, or with `--name` of another data set.

    GEBM_DATA=... python benchmarks/pretrained.py features
    GEBM_DATA=... python examples/images.py train --backend pyro --out out/images
    GEBM_DATA=... python benchmarks/pretrained.py model --model out/images/gebm.npz

"features" trains the feature network on the labelled images; "model" rounds all weights of a GEBM to half precision and
estimates log Z of the rounded model afresh. Both write a card: hashes, accuracy, commands. The numbers of README and
docs come from

    python examples/images.py evaluate --backend pyro
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import sys

import numpy as np
import pyro
import torch
from tqdm import trange

import pyro_gebm
from gebm.model_file import ModelFile
from pyro_gebm import nn
from pyro_gebm.infer import SMC

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import datasets

FOLDER = pathlib.Path(__file__).parents[1] / "gebm" / "pretrained_files"
#: Image shape, channels of the feature network, training steps, whether images are mirrored, and where data come from.
KINDS = {
    "fashion_mnist": {
        "event": (1, 28, 28),
        "channels": (16, 32),
        "steps": 3000,
        "mirrored": False,
        "data": "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
        "license": "MIT",
    },
    "cifar10": {
        "event": (3, 32, 32),
        "channels": (32, 64, 128),
        "steps": 4000,
        "mirrored": True,
        "data": "CIFAR-10, Krizhevsky, 'Learning Multiple Layers of Features from Tiny Images', 2009",
        "license": "none stated; the author asks for this citation. The files hold weights and features, no images.",
    },
}
BATCH, RATE = 128, 3e-3


def feature_network(images, labels, kind):
    """A convolutional classifier's body, ending in 64 features, and the classifier."""
    torch.manual_seed(0)
    body = nn.ConvEncoder(kind["event"], 64, kind["channels"], "relu", "relu")
    classifier = torch.nn.Sequential(body, torch.nn.Linear(64, 10))
    optim = torch.optim.Adam(classifier.parameters(), RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, RATE, kind["steps"])
    for _ in trange(kind["steps"], desc="features"):
        rows = torch.randint(len(images), (BATCH,))
        x = images[rows]
        if kind["mirrored"]:
            x = torch.where((torch.rand(BATCH) < 0.5)[:, None, None, None], x.flip(-1), x)
        loss = torch.nn.functional.cross_entropy(classifier(x), labels[rows])
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
    return body.eval(), classifier.eval()


def rounded(network):
    """The network itself, its weights rounded to half precision."""
    network.load_state_dict({name: value.half().float() for name, value in network.state_dict().items()})
    return network


def write_features(args, kind):
    """The file of the feature network, and its accuracy on the test images."""
    images, labels, test, test_labels = map(torch.as_tensor, getattr(datasets, args.name)(args.data))
    body, classifier = feature_network(images, labels, kind)
    with torch.no_grad():
        rounded(classifier)
        parts = [body(part) for part in test.split(1000)]
        accuracy = float((classifier(test).argmax(1) == test_labels).double().mean())
    description = json.dumps({"class": "ConvEncoder", "config": body.config})
    arrays = {f"features.{name}": value.half().numpy() for name, value in body.state_dict().items()}
    reference = torch.cat(parts).half().numpy()
    np.savez(FOLDER / f"{args.name}_features.npz", description=np.array(description), reference=reference, **arrays)
    return {"accuracy_of_features": accuracy}


def write_model(args, kind):
    """The file of the GEBM, and log Z of its rounded weights."""
    gebm = pyro_gebm.load(args.model)
    rounded(gebm.base.generator), rounded(gebm.energy)
    pyro.set_rng_seed(0)
    log_partition = SMC(args.particles).run(gebm.temper(1.0).latent).log_partition
    file = ModelFile.read(args.model)
    arrays = {name: value.astype(np.float16) for name, value in file.arrays.items()}
    dataclasses.replace(file, arrays=arrays, log_partition=log_partition.value).write(FOLDER / f"{args.name}.npz")
    return {"log_partition": {"value": log_partition.value, "std_error": log_partition.std_error}}


def main(argv=None):
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["features", "model"])
    parser.add_argument("--data", help="folder of the data; GEBM_DATA where it is not given")
    parser.add_argument("--model", help="file of the trained GEBM")
    parser.add_argument("--name", default="fashion_mnist", choices=tuple(KINDS))
    parser.add_argument("--particles", type=int, default=4096, help="for log Z")
    args = parser.parse_args(argv)
    kind, path = KINDS[args.name], FOLDER / f"{args.name}.json"
    FOLDER.mkdir(exist_ok=True)
    found = {"features": write_features, "model": write_model}[args.what](args, kind)
    files = sorted(FOLDER.glob(f"{args.name}*.npz"))
    option = "" if args.name == "fashion_mnist" else f" --name {args.name}"
    train = "examples/images.py train --backend pyro --out out/images" + option.replace("name", "dataset")
    commands = [
        f"GEBM_DATA=... python benchmarks/pretrained.py features{option}",
        f"GEBM_DATA=... python {train}",
        f"GEBM_DATA=... python benchmarks/pretrained.py model --model out/images/gebm.npz{option}",
    ]
    card = json.loads(path.read_text()) if path.exists() else {}
    card |= {"data": kind["data"], "license": kind["license"], "commands": commands} | found
    card["sha256"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    path.write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
