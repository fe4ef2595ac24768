"""The Streamlit app: reads runs, changes nothing in them."""
