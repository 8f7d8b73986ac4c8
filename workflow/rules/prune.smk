# prune: remove weights, exactly as many as asked for.
#
# needs   resources/models/{model}/
# leaves  results/{model}/{variant}/model/        the pruned model, its zeros not stored   + manifest.json
#         results/{model}/{variant}/sparsity.csv  what was removed from each tensor


rule prune:
    input:
        "resources/models/{model}/manifest.json",
    output:
        manifest="results/{model}/{pruned}/model/manifest.json",
        sparsity="results/{model}/{pruned}/sparsity.csv",
    log:
        "logs/prune/{model}/{pruned}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        runtime=runtime("prune"),
    params:
        settings=prune_settings,
        code=prune_code,
    shell:
        "python scripts/prune.py --model $(dirname {input})"
        " --output $(dirname {output.sparsity}) --settings {params.settings:q} > {log} 2>&1"
