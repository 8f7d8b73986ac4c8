# finetune: train a variant on a task with one seed, by one recipe.
#
# needs   the folder of a variant, resources/tasks/{task}/, and resources/tasks/{train_on}/ where it names one;
#         for some recipes the dense model's run
# leaves  results/{model}/{variant}/{task}/{recipe}/seed-{seed}/
#             metrics.json     what the last epoch reached
#             history.csv      every epoch: loss, metrics, sparsity
#             checkpoints.csv  the weights cached after every epoch, in work/
#             runtime.json     seconds, memory, device, versions


rule finetune:
    input:
        model=model_manifest,
        task="resources/tasks/{task}/manifest.json",
        text=training_text,
        dense=dense_run,
    output:
        metrics="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/metrics.json",
        history="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/history.csv",
        checkpoints="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/checkpoints.csv",
        runtime="results/{model}/{variant}/{task}/{recipe}/seed-{seed}/runtime.json",
    log:
        "logs/finetune/{model}/{variant}/{task}/{recipe}/seed-{seed}.log",
    priority: 1
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        save_minutes=save_minutes,
        gpu=finetune_gpus,
        accelerate=accelerate,
        runtime=runtime("finetune"),
    params:
        settings=finetune_settings,
        code=code("finetune"),
    shell:
        "python scripts/finetune.py --model $(dirname {input.model}) --task $(dirname {input.task}) --output $(dirname {output.metrics})"
        " --work work --text {input.text} --dense {input.dense} --save-minutes {resources.save_minutes} --gpus {resources.gpu} --accelerate {resources.accelerate}"
        " --code {params.code} --threads {threads} --settings {params.settings:q} > {log} 2>&1"
