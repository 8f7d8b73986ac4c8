# weights: how the weights of a variant are distributed, overall, by layer and by tensor.
#
# needs   the folder of a variant
# leaves  results/{model}/{variant}/weights.parquet


rule weights:
    input:
        model_manifest,
    output:
        "results/{model}/{variant}/weights.parquet",
    log:
        "logs/weights/{model}/{variant}.log",
    conda:
        "../../envs/environment.yaml"
    resources:
        runtime=runtime("weights"),
    params:
        settings=settings(),
        code=code("weights"),
    shell:
        "python scripts/weights.py --model $(dirname {input}) --output {output}"
        " --settings {params.settings:q} > {log} 2>&1"
