"""The study: stages built once, notebooks run by papermill, the report."""
