"""The Streamlit app: shows runs while they go on and afterwards, starts them, tells them what their user wants."""
