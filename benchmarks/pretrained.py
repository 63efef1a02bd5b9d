"""Make the files of a shipped model: `gebm/pretrained_files/fashion_mnist*`.

    GEBM_DATA=... python examples/images.py train --backend pyro --out out/images
    GEBM_DATA=... python benchmarks/pretrained.py --model out/images/gebm.npz

trains the feature network on the labelled images, rounds all weights to half precision, estimates log Z of the rounded
model afresh, and writes the files with a card: hashes, accuracy, commands. The numbers of README and docs come from

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

import pyro_gebm
from gebm.model_file import ModelFile
from pyro_gebm import nn
from pyro_gebm.infer import SMC

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
from datasets import fashion_mnist

FOLDER = pathlib.Path(__file__).parents[1] / "gebm" / "pretrained_files"
STEPS, BATCH, RATE = 3000, 128, 3e-3


def feature_network(images, labels):
    """A convolutional classifier's body, ending in 64 features, and the classifier."""
    torch.manual_seed(0)
    body = nn.ConvEncoder((1, 28, 28), 64, (16, 32), "relu", "relu")
    classifier = torch.nn.Sequential(body, torch.nn.Linear(64, 10))
    optim = torch.optim.Adam(classifier.parameters(), RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, RATE, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,))
        loss = torch.nn.functional.cross_entropy(classifier(images[rows]), labels[rows])
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
    return body.eval(), classifier.eval()


def rounded(network):
    """The network itself, its weights rounded to half precision."""
    network.load_state_dict({name: value.half().float() for name, value in network.state_dict().items()})
    return network


@torch.no_grad()
def main(argv=None):
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data; GEBM_DATA where it is not given")
    parser.add_argument("--model", required=True, help="file of the trained GEBM")
    parser.add_argument("--name", default="fashion_mnist")
    args = parser.parse_args(argv)
    images, labels, test, test_labels = map(torch.as_tensor, fashion_mnist(args.data))
    FOLDER.mkdir(exist_ok=True)

    with torch.enable_grad():
        body, classifier = feature_network(images, labels)
    rounded(classifier)
    accuracy = float((classifier(test).argmax(1) == test_labels).double().mean())
    reference = torch.cat([body(part) for part in test.split(1000)])
    description = json.dumps({"class": "ConvEncoder", "config": body.config})
    arrays = {f"features.{name}": value.half().numpy() for name, value in body.state_dict().items()}
    path = FOLDER / f"{args.name}_features.npz"
    np.savez(path, description=np.array(description), reference=reference.half().numpy(), **arrays)

    gebm = pyro_gebm.load(args.model)
    rounded(gebm.base.generator), rounded(gebm.energy)
    pyro.set_rng_seed(0)
    log_partition = SMC(4096).run(gebm.temper(1.0).latent).log_partition
    file = ModelFile.read(args.model)
    arrays = {name: value.astype(np.float16) for name, value in file.arrays.items()}
    dataclasses.replace(file, arrays=arrays, log_partition=log_partition.value).write(FOLDER / f"{args.name}.npz")

    files = sorted(FOLDER.glob(f"{args.name}*.npz"))
    card = {
        "data": "Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist",
        "license": "MIT",
        "commands": [line.strip() for line in __doc__.splitlines() if line.startswith("    ")],
        "log_partition": {"value": log_partition.value, "std_error": log_partition.std_error},
        "accuracy_of_features": accuracy,
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (FOLDER / f"{args.name}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
