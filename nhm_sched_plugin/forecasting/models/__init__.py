"""The models, behind one small interface (`base.Model`). Fitted ones are plain numbers, evaluated with numpy alone."""
