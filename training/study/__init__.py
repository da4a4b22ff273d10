"""The study: what textbooks assert of recurrent models, trained and measured, with a page that says what came out."""
