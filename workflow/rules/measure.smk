# measure: the cost of a variant: bytes, seconds to load, memory and seconds of inference.
#
# needs   the folder of a variant, resources/models/{model}/ to compare with
# leaves  results/{model}/{variant}/cost.json


rule measure:
    input:
        model=model_manifest,
        weights=ancient(model_weights),
        dense="resources/models/{model}/manifest.json",
        dense_weights=ancient("resources/models/{model}/model.safetensors"),
    output:
        "results/{model}/{variant}/cost.json",
    log:
        "logs/measure/{model}/{variant}.log",
    # All cores: no other job of this workflow runs beside it, whose share of memory and caches would show in seconds. A
    # batch system's driver has no number of cores: there a job has a GPU slot of its own.
    threads: lambda wildcards: workflow.resource_settings.cores or 1
    resources:
        gpu=1,
        runtime=runtime("measure"),
        mem_mb=memory("measure"),
        disk_mb=disk("measure"),
    params:
        settings=settings(**STUDY.measure.model_dump()),
        code=model_code("measure"),
    shell:
        'python "$LLM_SPARSITY/scripts/measure.py" --model "$(dirname {input.model:q})"'
        ' --dense "$(dirname {input.dense:q})" --output "$(dirname {output:q})"'
        " --threads 1 --gpus {resources.gpu} --settings {params.settings:q} > {log:q} 2>&1"
