# finetune: train a variant on a task with one seed, by one recipe.
#
# needs   the folder of a variant, or of this variant of the fine-tuned dense model; resources/tasks/{task}/, and
#         resources/tasks/{train_on}/ if the task names one, or {unlabelled} for a recipe that learns from it; for
#         recipes with a schedule or a teacher, the fine-tuned dense model
# leaves  results/{model}/{variant}/{task}/{recipe}/seed-{seed}/
#             metrics.json     scores after the last epoch
#             predictions.csv  of every validation example, after the last epoch
#             history.csv      loss, scores and sparsity of every epoch
#             checkpoints.csv  the weights after every epoch, cached in work/
#             runtime.json     seconds, memory, device, versions
#             model/           the fine-tuned model: model.safetensors, tokenizer, configuration, manifest.json


rule finetune:
    input:
        model=start_manifest,
        weights=ancient(start_weights),
        task="resources/tasks/{task}/manifest.json",
        text=training_text,
        dense=dense_run("manifest.json"),
        dense_weights=ancient(dense_run("model.safetensors")),
    output:
        # First: of a run without training it is a link to the input. Snakemake touches outputs in their order, and refuses
        # one that is older than an input.
        weights="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/model/model.safetensors",
        metrics="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/metrics.json",
        predictions="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/predictions.csv",
        history="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/history.csv",
        checkpoints="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/checkpoints.csv",
        runtime="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/runtime.json",
        manifest="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/model/manifest.json",
    log:
        "logs/finetune/{model}/{variant}/{task}/{recipe}/seed-{seed}.log",
    priority: 1
    threads: 1
    resources:
        save_minutes=lambda wildcards: STUDY.finetune_settings(wildcards.task, wildcards.recipe)["save_minutes"],
        gpu=lambda wildcards: STUDY.models[wildcards.model].gpus,
        accelerate=lambda wildcards: STUDY.models[wildcards.model].accelerate,
        tracker=STUDY.tracker or "none",
        runtime=runtime("finetune"),
        mem_mb=megabytes(footprint.mem_mb, "finetune"),
        disk_mb=megabytes(footprint.disk_mb, "finetune"),
    params:
        settings=finetune_settings,
        code=code("finetune"),
    shell:
        'python "$LLM_SPARSITY/scripts/finetune.py" --model "$(dirname {input.model:q})"'
        ' --task "$(dirname {input.task:q})" --output "$(dirname {output.metrics:q})" --work work'
        " --text {input.text:q} --dense {input.dense:q} --save-minutes {resources.save_minutes}"
        " --tracker {resources.tracker}"
        " --gpus {resources.gpu} --accelerate {resources.accelerate} --code {params.code} --threads {threads}"
        " --settings {params.settings:q} > {log:q} 2>&1"
