# prune: remove weights, exactly as many as asked for.
#
# needs   resources/models/{model}/, and resources/tasks/{task}/ for a calibrated method
# leaves  results/{model}/{variant}/model/        the pruned model, its zeros not stored: model.safetensors, manifest.json
#         results/{model}/{variant}/sparsity.csv  the weights removed from each tensor
#
# prune_finetuned: the same for the dense model that was fine-tuned on a task; calibrated on the task's own training split.
#
# needs   results/{model}/dense/{task}/kept/seed-{seed}/model/, and resources/tasks/{task}/ for a calibrated method
# leaves  results/{model}/{variant}/{task}/seed-{seed}/model/, sparsity.csv


rule prune:
    input:
        model="resources/models/{model}/manifest.json",
        weights=ancient("resources/models/{model}/model.safetensors"),
        text=calibration_manifest,
    output:
        manifest="results/{model}/{pruned}/model/manifest.json",
        weights="results/{model}/{pruned}/model/model.safetensors",
        sparsity="results/{model}/{pruned}/sparsity.csv",
    log:
        "logs/prune/{model}/{pruned}.log",
    threads: 1
    resources:
        gpu=lambda wildcards: int(pruned_variant(wildcards).is_calibrated),
        runtime=runtime("prune"),
        mem_mb=megabytes(footprint.mem_mb, "prune"),
        disk_mb=megabytes(footprint.disk_mb, "prune"),
    params:
        settings=prune_settings,
        code=prune_code,
    shell:
        'python "$LLM_SPARSITY/scripts/prune.py" --model "$(dirname {input.model:q})" --text {input.text:q}'
        ' --output "$(dirname {output.sparsity:q})" --threads {threads} --gpus {resources.gpu}'
        " --settings {params.settings:q} > {log:q} 2>&1"


use rule prune as prune_finetuned with:
    input:
        model="results/{model}/dense/{task}/kept/seed-{seed}/model/manifest.json",
        weights=ancient("results/{model}/dense/{task}/kept/seed-{seed}/model/model.safetensors"),
        text=own_text,
    output:
        manifest="results/{model}/{pruned}/{task}/seed-{seed}/model/manifest.json",
        weights="results/{model}/{pruned}/{task}/seed-{seed}/model/model.safetensors",
        sparsity="results/{model}/{pruned}/{task}/seed-{seed}/sparsity.csv",
    log:
        "logs/prune/{model}/{pruned}/{task}/seed-{seed}.log",
