"""What attention does in a model: records, measures and interventions for heads, tokens and layers."""
