# collect: the tables of a study, one row per observation. They are its public contract: figures read nothing else.
#
# needs   everything that the study computes
# leaves  reports/{study}/tables/*.csv, manifest.json

TABLES = ["metrics", "runs", "history", "sizes", "speed", "weights", "tensors", "baselines", "claims"]


def contents(*paths):
    """The sha256 of files that the config names. As inputs, Snakemake compares them only if they are newer than before."""
    return [sha256(Path(path)) for path in paths if path and Path(path).is_file()]


def everything(wildcards):
    """All results of the study. A function, so that a process that runs another job does not list them."""
    evaluated, pruned = (*CELLS.evaluations, *CELLS.runs), [cell for cell in CELLS.variants if not cell[1].is_dense]
    return [
        # Weight statistics of dense models alone: no figure and no claim reads those of pruned ones.
        *(f"results/{model}/{variant}/weights.parquet" for model, variant in CELLS.variants if variant.is_dense),
        # Manifests hold the sizes of weight files.
        *(manifest_of(model, variant) for model, variant in CELLS.variants),
        *(run.folder / "model/manifest.json" for run in CELLS.runs),
        *(f"results/{model}/{variant}/sparsity.csv" for model, variant in pruned),
        *(f"results/{model}/{variant}/cost.json" for model, variant in CELLS.measured),
        *(cell.folder / name for cell in evaluated for name in ("metrics.json", "runtime.json")),
        *(run.folder / "history.csv" for run in CELLS.runs),
    ]


localrules:
    collect,


rule collect:
    input:
        everything,
        claims=named_file("claims"),
        numbers=claims_numbers(),
    output:
        tables=report(
            expand("reports/{study}/tables/{table}.csv", study=STUDY.name, table=TABLES),
            category="Tables",
            caption="../report/tables.rst",
        ),
        manifest=f"reports/{STUDY.name}/tables/manifest.json",
    log:
        f"logs/collect/{STUDY.name}.log",
    resources:
        mem_mb=memory("collect"),
        disk_mb=disk("collect"),
    params:
        settings=settings(study=STUDY.name, grids=STUDY.grids(), stages=STUDY.stages()),
        code=code("collect"),
        named=contents(named_file("claims"), claims_numbers()),
    shell:
        'python "$LLM_SPARSITY/scripts/collect.py" --output "$(dirname {output.manifest:q})" --claims {input.claims:q}'
        " --settings {params.settings:q} > {log:q} 2>&1"
