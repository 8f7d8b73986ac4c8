# weights: the distribution of a variant's weights, overall, by layer and by tensor, and the bytes that they take.
#
# needs   the folder of a variant
# leaves  results/{model}/{variant}/weights.parquet, sizes.json


rule weights:
    input:
        model=model_manifest,
        weights=ancient(model_weights),
    output:
        weights="results/{model}/{variant}/weights.parquet",
        sizes="results/{model}/{variant}/sizes.json",
    log:
        "logs/weights/{model}/{variant}.log",
    resources:
        runtime=runtime("weights"),
        mem_mb=megabytes(footprint.mem_mb, "weights"),
        disk_mb=megabytes(footprint.disk_mb, "weights"),
    params:
        settings=settings(),
        code=code("weights"),
    shell:
        'python "$LLM_SPARSITY/scripts/weights.py" --model "$(dirname {input.model:q})" --output "$(dirname {output.sizes:q})"'
        " --settings {params.settings:q} > {log:q} 2>&1"
