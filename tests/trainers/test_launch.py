"""Profiles of accelerate and the Slurm script: what they start, up to the command line and environment of torchrun."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import accelerate.commands.launch as launcher
import pytest
import yaml
from accelerate import ParallelismConfig
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from trainers.recipes import parse_arguments


ROOT = Path(__file__).resolve().parents[2]
PROFILES = ROOT / "recipes" / "accelerate"
SCRIPT = ROOT / "recipes" / "slurm" / "train.sbatch"
RUN = ["-m", "trainers.train", "--config", "recipes/pretrain_7b.yaml"]


@pytest.fixture
def launched(monkeypatch):
    """Function from words behind `accelerate launch` to its arguments and environment, where torchrun would start."""
    started = []
    for kind in ("multi_gpu_launcher", "deepspeed_launcher", "simple_launcher"):
        monkeypatch.setattr(launcher, kind, lambda arguments, kind=kind: started.append((kind, arguments)))

    def launch(*words: str):
        launcher.launch_command(launcher.launch_command_parser().parse_args([*words]))
        kind, arguments = started.pop()
        return kind, arguments, prepare_multi_gpu_env(arguments) if kind == "multi_gpu_launcher" else {}

    return launch


@pytest.mark.parametrize("profile", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_loads_every_profile(profile):
    config = load_config_from_file(str(profile))
    assert config.mixed_precision == "bf16" and config.num_processes == 8 * config.num_machines


def test_ddp_starts_eight_processes(launched):
    kind, arguments, environment = launched("--config_file", str(PROFILES / "ddp.yaml"), *RUN)
    assert (kind, arguments.nproc_per_node) == ("multi_gpu_launcher", "8")
    assert "ACCELERATE_USE_FSDP" not in environment


@pytest.mark.parametrize(("profile", "replicas", "shards"), [("fsdp2", 1, 1), ("hsdp", 2, 8)])
def test_fsdp_profiles_shard_the_layers_of_the_llm(launched, monkeypatch, profile, replicas, shards):
    words = ["--config_file", str(PROFILES / f"{profile}.yaml"), "--main_process_ip", "first", *RUN]
    kind, arguments, environment = launched(*words)
    assert (kind, arguments.num_processes) == ("multi_gpu_launcher", 8 * replicas)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, True)
    assert plugin.transformer_cls_names_to_wrap == [LlamaDecoderLayer.__name__]
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type) and not plugin.activation_checkpointing
    mesh = ParallelismConfig()
    assert (mesh.dp_replicate_size, mesh.dp_shard_size) == (replicas, shards)
    assert ("ACCELERATE_USE_PARALLELISM_CONFIG" in environment) == (profile == "hsdp")


def test_zero3_is_that_of_the_release(launched):
    kind, arguments, _ = launched("--config_file", str(PROFILES / "zero3.yaml"), *RUN)
    assert (kind, arguments.zero_stage, arguments.gradient_clipping) == ("deepspeed_launcher", 3, None)
    assert arguments.zero3_init_flag is False and arguments.zero3_save_16bit_model is True


def test_torchrun_gets_the_same_sharding_as_accelerate():
    flags = json.loads((PROFILES / "fsdp2.json").read_text(encoding="utf-8"))
    profile = yaml.safe_load((PROFILES / "fsdp2.yaml").read_text(encoding="utf-8"))["fsdp_config"]
    profile["fsdp_cpu_offload"] = profile.pop("fsdp_offload_params")
    profile["fsdp_transformer_layer_cls_to_wrap"] = [profile["fsdp_transformer_layer_cls_to_wrap"]]
    assert {f"fsdp_{name}": value for name, value in flags.items()} == profile


# Slurm's commands for one machine: `srun` runs its command for two nodes and hands signals on, as the real one does.
FAKES = {
    "srun": """
while [[ $1 == --* ]]; do shift; done
trap 'kill -USR1 "${tasks[@]}"' USR1
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks+=($!); done
while kill -0 "${tasks[@]}" 2>/dev/null; do wait "${tasks[@]}" || true; done
wait "${tasks[0]}"
""",
    "scontrol": """
if [[ $1 == show ]]; then echo first; echo second; else echo "$@" > "$LOGS/queued"; fi
""",
    "accelerate": """
printf '%s\\n' "$@" > "$LOGS/words-$SLURM_NODEID"
env > "$LOGS/env-$SLURM_NODEID"
trap 'sleep 0.2; exit 75' USR1
while [[ -n ${ENDLESS:-} ]]; do sleep 0.02; done
exit "${EXIT_CODE:-0}"
""",
}


@pytest.fixture
def job(tmp_path):
    """Function that starts the script as Slurm would on the first of two nodes of 8 GPUs."""
    for name, text in FAKES.items():
        (tmp_path / name).write_text("#!/bin/bash\n" + text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)

    def start(*words: str, **environment: str) -> subprocess.Popen:
        slurm = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOGS": str(tmp_path), "SLURM_GPUS_ON_NODE": "8", **slurm}
        return subprocess.Popen(["bash", str(SCRIPT), *words], cwd=ROOT, env={**os.environ, **own, **environment})

    return start


def test_the_script_is_bash():
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0


def test_slurm_reaches_torchrun_with_two_nodes_of_eight_gpus(job, launched, tmp_path):
    assert job("recipes/pretrain_7b.yaml", "--seed", "7").wait(timeout=20) == 0
    assert not (tmp_path / "queued").exists()
    for node in (0, 1):
        command, *words = (tmp_path / f"words-{node}").read_text(encoding="utf-8").splitlines()
        kind, arguments, environment = launched(*words)
        assert (command, kind, arguments.num_processes) == ("launch", "multi_gpu_launcher", 16)
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", node)
        assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "first:22345")
        assert environment["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"] == "2"
        assert environment["PARALLELISM_CONFIG_DP_SHARD_SIZE"] == "8"
        assert arguments.training_script == "trainers.train"
        run, config = parse_arguments([*arguments.training_script_args, "--use_cpu", "true"])
        assert (run.stage, config.seed, config.resume_from_checkpoint) == ("pretrain", 7, "true")
        seen = (tmp_path / f"env-{node}").read_text(encoding="utf-8").splitlines()
        assert {"PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "PET_SHUTDOWN_TIMEOUT=540"} <= set(seen)


def test_a_job_at_the_end_of_its_time_lets_the_run_save_and_queues_again(job, tmp_path):
    process = job("recipes/pretrain_7b.yaml", ENDLESS="yes")
    deadline = time.monotonic() + 20
    while not all((tmp_path / f"env-{node}").exists() for node in (0, 1)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)  # until the stand-ins have set their traps
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 75
    assert (tmp_path / "queued").read_text(encoding="utf-8").split() == ["requeue", "12345"]


def test_a_failed_run_is_not_queued_again(job, tmp_path):
    assert job("recipes/pretrain_7b.yaml", EXIT_CODE="3").wait(timeout=20) == 3
    assert not (tmp_path / "queued").exists()
