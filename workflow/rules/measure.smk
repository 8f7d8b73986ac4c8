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
    # On this machine all cores: a job of this workflow beside it would show in its seconds. Elsewhere a job has a slot,
    # with a GPU of its own.
    threads: all_cores
    resources:
        gpu=1,
        runtime=runtime("measure"),
        mem_mb=megabytes(footprint.mem_mb, "measure"),
        disk_mb=megabytes(footprint.disk_mb, "measure"),
    params:
        settings=settings(**STUDY.measure.model_dump()),
        code=code("measure"),
    shell:
        'python "$LLM_SPARSITY/scripts/measure.py" --model "$(dirname {input.model:q})"'
        ' --dense "$(dirname {input.dense:q})" --output "$(dirname {output:q})"'
        " --threads 1 --gpus {resources.gpu} --settings {params.settings:q} > {log:q} 2>&1"
