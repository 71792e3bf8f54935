"""What SWE environments have in common, whatever broke the package: suites, faults, symptoms, folders."""
