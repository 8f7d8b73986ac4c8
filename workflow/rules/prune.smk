# prune: remove weights, exactly as many as asked for.
#
# needs   resources/models/{model}/, and resources/tasks/{task}/ to calibrate with where the method asks for it
# leaves  results/{model}/{variant}/model/        the pruned model, its zeros not stored   + manifest.json
#         results/{model}/{variant}/sparsity.csv  what was removed from each tensor


rule prune:
    input:
        model="resources/models/{model}/manifest.json",
        text=calibration_manifest,
    output:
        manifest="results/{model}/{pruned}/model/manifest.json",
        sparsity="results/{model}/{pruned}/sparsity.csv",
    log:
        "logs/prune/{model}/{pruned}.log",
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        gpu=prune_gpus,
        runtime=runtime("prune"),
    params:
        settings=prune_settings,
        code=prune_code,
    shell:
        "python scripts/prune.py --model $(dirname {input.model}) --text {input.text}"
        " --output $(dirname {output.sparsity}) --threads {threads} --gpus {resources.gpu} --settings {params.settings:q} > {log} 2>&1"
