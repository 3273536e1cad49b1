# Copyright (c) CDWS-MIL contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The cluster examples are what their schedulers read, and ask for runs, configs and settings that exist."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "scaling"


def check_command(arguments: list[str], nodes: str | None, processes: str | None) -> None:
    """That torchrun reads the options as meant, and the bundle has what it is asked for."""
    options = get_args_parser().parse_args(arguments)
    assert options.module
    assert options.training_script == "monai.bundle"
    assert options.training_script_args[:2] == ["run", "training"]
    if nodes:
        assert (options.nnodes, options.nproc_per_node) == (nodes, processes)
        assert (options.rdzv_backend, options.rdzv_endpoint.split(":")[1]) == ("c10d", "29500")
    text = " ".join(options.training_script_args)
    configs = re.findall(r"bundle/configs/\w+\.json", text)
    assert configs[-1] == "bundle/configs/multi_gpu_train.json"
    keys = {key for config in configs for key in json.loads((ROOT / config).read_text())}
    assert set(re.findall(r"--(\w+)", text)) <= keys | {"config_file"}


def test_slurm_script():
    path = FOLDER / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text().replace("\\\n", " ")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, flags=re.M))
    assert asked["ntasks-per-node"] == "1"  # torchrun starts the others
    assert asked["gpus-per-node"] == re.search(r"^GPUS=(\d+)", text, flags=re.M)[1]
    settings = {"CONFIGS": re.search(r'^CONFIGS="(.+)"', text, flags=re.M)[1], "GPUS": "4", "SLURM_NNODES": "2"}
    command = re.search(r"^srun torchrun (.+)$", text, flags=re.M)[1]
    filled = re.sub(r"\$(\w+)", lambda name: settings.get(name[1], "any"), command)
    arguments = subprocess.run(
        ["bash", "-c", f'printf "%s\\n" {filled}'], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    check_command(arguments, "2", "4")


def test_kubernetes_job():
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    first = f"{job['metadata']['name']}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
    assert f"--rdzv_endpoint={first}" in container["args"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    check_volumes(pod)
    check_command(container["args"], "2", str(container["resources"]["limits"]["nvidia.com/gpu"]))


def test_kubeflow_job():
    job = yaml.safe_load((FOLDER / "pytorchjob.yaml").read_text())
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    for replica in replicas.values():
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"  # the operator looks for it
        assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == job["spec"]["nprocPerNode"]
        check_volumes(pod)
        check_command(container["args"], None, None)


@pytest.mark.slow
def test_an_archive_of_slides_on_two_workers(quick_python, red_detector, write_slide, tissue_picture, tmp_path):
    """One of three slides is damaged: the others are finished and gathered, and not repeated when it is mended."""
    snakemake = shutil.which("snakemake")
    if snakemake is None:
        pytest.skip("snakemake, which doesn't go with some of the bundle's packages, is not on the PATH")
    slides, output = tmp_path / "the slides", tmp_path / "out"
    slides.mkdir()
    for name in ("a", "it's c"):
        write_slide(slides / f"{name}.tif", tissue_picture(200, 260), 1.0)
    (slides / "b.svs").write_text("no slide")
    options = f"--method cdws --ckpt_path {red_detector} --spatial_size [64,64] --mpp 1"
    config = {"slides": slides, "output": output, "options": options, "cdws": f"{quick_python} {ROOT / 'bundle'}"}
    command = [snakemake, "-s", FOLDER / "Snakefile", "--cores", "2", "--keep-going", "--config"]
    command += [f"{name}={value}" for name, value in config.items()]

    def archive() -> subprocess.CompletedProcess:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    def gathered() -> list[str]:
        with (output / "slides.csv").open(newline="") as file:
            return [row["slide"] for row in csv.DictReader(file)]

    done = archive()
    assert done.returncode != 0
    assert "1 of 3 slides have no result" in done.stdout + done.stderr
    assert gathered() == ["a", "it's c"]
    assert "can't be opened as a slide" in (output / "logs" / "b.log").read_text()
    finished = {name: (output / name / f"{name}.json").stat().st_mtime_ns for name in ("a", "it's c")}
    write_slide(slides / "b.svs", tissue_picture(200, 260), 1.0)
    done = archive()
    assert done.returncode == 0, done.stderr
    assert gathered() == ["a", "b", "it's c"]
    assert finished == {name: (output / name / f"{name}.json").stat().st_mtime_ns for name in finished}


def check_volumes(pod: dict) -> None:
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["slurm.sbatch", "kubernetes.yaml", "pytorchjob.yaml", "Snakefile"])
def test_the_page_links_every_example(name):
    assert f"(scaling/{name})" in (FOLDER.parent / "scaling.md").read_text()
