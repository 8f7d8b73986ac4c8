# collect: the tables of a study, one row an observation. They are the public contract; the figures read nothing else.
#
# needs   everything that the study computes
# leaves  reports/{study}/tables/*.csv, manifest.json

TABLES = ["metrics", "runs", "history", "sizes", "speed", "weights", "tensors", "baselines", "claims"]


localrules:
    collect,


rule collect:
    input:
        [f"results/{model}/{variant}/weights.parquet" for model, variant in CELLS.variants],
        [f"results/{model}/{variant}/sparsity.csv" for model, variant in CELLS.variants if not variant.is_dense],
        [f"results/{model}/{variant}/cost.json" for model, variant in CELLS.measured],
        [evaluation.folder / "metrics.json" for evaluation in CELLS.evaluations],
        [run.folder / "metrics.json" for run in CELLS.runs],
    output:
        tables=expand("reports/{study}/tables/{table}.csv", study=STUDY.name, table=TABLES),
        manifest=f"reports/{STUDY.name}/tables/manifest.json",
    log:
        f"logs/collect/{STUDY.name}.log",
    conda:
        "../../envs/environment.yaml"
    params:
        settings=settings(study=STUDY.name, grids=STUDY.grids(), stages=STUDY.stages()),
        code=code("collect", files=[WORKFLOW / "workflow/report/published.csv"]),
    shell:
        f"python scripts/collect.py --output reports/{STUDY.name}/tables --settings {{params.settings:q}} > {{log}} 2>&1"
