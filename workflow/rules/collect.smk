# collect: the tables of a study, one row per observation. They are its public contract: figures read nothing else.
#
# needs   everything that the study computes
# leaves  reports/{study}/tables/*.csv, study.parquet, dictionary.csv, manifest.json

TABLES = ["tasks", "metrics", "runs", "history", "sizes", "speed", "weights", "tensors", "baselines", "claims"]


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
        parquet=f"reports/{STUDY.name}/tables/study.parquet",
        dictionary=f"reports/{STUDY.name}/tables/dictionary.csv",
        manifest=f"reports/{STUDY.name}/tables/manifest.json",
    log:
        f"logs/collect/{STUDY.name}.log",
    resources:
        mem_mb=megabytes(footprint.mem_mb, "collect"),
        disk_mb=megabytes(footprint.disk_mb, "collect"),
    params:
        settings=settings(study=STUDY.name, grids=STUDY.grids(), stages=STUDY.stages(), scores=STUDY.scores()),
        code=code("collect", files=[Path(methods.__file__).parents[1] / "reporting/dictionary.csv"]),
        named=contents(named_file("claims"), claims_numbers()),
    shell:
        'python "$LLM_SPARSITY/scripts/collect.py" --output "$(dirname {output.manifest:q})" --claims {input.claims:q}'
        " --settings {params.settings:q} > {log:q} 2>&1"
