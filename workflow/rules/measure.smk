# measure: what a variant costs: bytes, seconds to load, memory and seconds of inference.
#
# needs   the folder of a variant, resources/models/{model}/ to compare with
# leaves  results/{model}/{variant}/cost.json


rule measure:
    input:
        model=model_manifest,
        dense="resources/models/{model}/manifest.json",
    output:
        "results/{model}/{variant}/cost.json",
    log:
        "logs/measure/{model}/{variant}.log",
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        gpu=1,
        runtime=runtime("measure"),
    params:
        settings=settings(**STUDY.measure.model_dump()),
        code=code("measure"),
    shell:
        "python scripts/measure.py --model $(dirname {input.model}) --dense $(dirname {input.dense})"
        " --output $(dirname {output}) --threads {threads} --gpus {resources.gpu} --settings {params.settings:q} > {log} 2>&1"
